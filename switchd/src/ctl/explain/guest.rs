//! What to type so that a guest is at the other end of a port: lines for a shell that start QEMU, and libvirt's XML.
//!
//! A line is for a POSIX shell, ready to be pasted, whatever is in the names of interfaces, namespaces and files: [`word`] quotes for the shell,
//! [`value`] for QEMU before that, [`attribute`] for XML.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::Path;

use vswitch::spec::Netns;
use vswitch::sys::unix::PATH_MAX_BYTES;

use super::is_client;
use crate::api::{PortInfo, Role, SocketInfo};
use crate::attach;

/// Where the helper is installed.
const HELPER: &str = "/usr/lib/qemu/vswitch-bridge-helper";

/// For whom there are such lines for a port, if there are.
pub(in crate::ctl) fn lines_for(port: &PortInfo) -> Option<&'static str> {
    match (&port.socket, port.kind.as_str()) {
        (_, "vhost-user" | "packet") => Some("QEMU and libvirt"),
        (Some(SocketInfo { role: Role::Client, .. }), "vde") => Some("a VDE switch"),
        (socket, _) => socket.as_ref().map(|_| "QEMU"),
    }
}

/// What to type for `port`, of a vswitchd with this attach socket.
pub(super) fn lines(port: &PortInfo, attach_socket: Option<&str>) -> String {
    match (&port.socket, port.kind.as_str()) {
        (Some(SocketInfo { path: Some(path), role, .. }), "vhost-user") => vhost_user(port, path, *role),
        (Some(SocketInfo { path: Some(path), role, .. }), "vde") => plugs(port, path, *role),
        (Some(socket), _) => sockets(port, socket),
        (None, "packet") if port.attached.is_some() => helper(port, attach_socket),
        (None, "packet") => tap(port),
        _ => String::new(),
    }
}

/// As a word of a shell's line, or a part of one.
fn word(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-,:+@%=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
    }
}

/// As the value of one of QEMU's options, where a comma is written twice, in a shell's line.
fn value(text: &str) -> String {
    word(&text.replace(',', ",,")).into_owned()
}

/// As the value of an attribute in single quotes.
fn attribute(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

/// The port's MTU, where it is not what a network card expects.
fn unusual_mtu(port: &PortInfo) -> Option<u32> {
    port.mtu.filter(|mtu| *mtu != 1500)
}

/// QEMU's network card at the netdev `net0`. QEMU gives all guests the same address, so it is told one, made of the names of the port and
/// its bridge (FNV-1a): the same whenever it is asked for.
fn card(port: &PortInfo) -> String {
    let names = [&port.bridge, " ", &port.name].into_iter().flat_map(str::bytes);
    let hash = names.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [_, a, b, c] = hash.to_be_bytes();
    let mtu = unusual_mtu(port).map_or_else(String::new, |mtu| format!(",host_mtu={mtu}"));
    format!("virtio-net-pci,netdev=net0{mtu},mac=52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

/// What libvirt's interface says of the MTU.
fn size(port: &PortInfo) -> String {
    unusual_mtu(port).map_or_else(String::new, |mtu| format!("    <mtu size='{mtu}'/>\n"))
}

/// How a guest comes to a bridge by the helper, which makes such a port.
fn helper(port: &PortInfo, attach_socket: Option<&str>) -> String {
    let elsewhere = attach_socket.filter(|socket| *socket != attach::DEFAULT_SOCKET);
    // With a space in it QEMU takes it for a line of a shell's, and adds the bridge as it is, unless there is a '--br=' somewhere.
    let program = elsewhere.map_or_else(
        || HELPER.to_owned(),
        |socket| format!("{HELPER} --socket {} --br={}", word(socket), word(&port.bridge)),
    );
    let libvirt = if elsewhere.is_some() {
        format!(
            "libvirt starts it without arguments, so only for vswitchd's attach socket at {}.\n",
            attach::DEFAULT_SOCKET
        )
    } else {
        format!(
            "With libvirt (a user's own session), in the domain's <devices>:\n\
             \x20 <interface type='bridge'>\n\
             \x20   <source bridge='{}'/>\n\
             \x20   <model type='virtio'/>\n\
             \x20 </interface>\n",
            attribute(&port.bridge)
        )
    };
    format!(
        "\nA guest gets such a port by itself, with QEMU's bridge helper:\n\
         \x20 qemu-system-x86_64 … \\\n\
         \x20   -netdev bridge,id=net0,br={},helper={} \\\n\
         \x20   -device {}\n{libvirt}",
        value(&port.bridge),
        value(&program),
        card(port),
    )
}

/// How a guest gets the tap that a packet port may stand on.
fn tap(port: &PortInfo) -> String {
    let ifname = port.ifname.as_deref().unwrap_or("?");
    let inside = port.netns.as_ref().map_or_else(String::new, |netns| {
        let path = Netns(netns.clone()).path().display().to_string();
        format!("nsenter --net={} ", word(&path))
    });
    format!(
        "\nIf '{ifname}' is to be a QEMU guest's tap, make it once and let QEMU hold it:\n\
         \x20 {inside}ip tuntap add dev {0} mode tap vnet_hdr && {inside}ip link set dev {0} up\n\
         \x20 {inside}qemu-system-x86_64 … -netdev tap,id=net0,ifname={1},script=no,downscript=no \\\n\
         \x20   -device {2}\n\
         With libvirt, instead of the second line, in the domain's <devices>:\n\
         \x20 <interface type='ethernet'>\n\
         \x20   <target dev='{3}' managed='no'/>\n\
         \x20   <model type='virtio'/>\n{4}\
         \x20 </interface>\n",
        word(ifname),
        value(ifname),
        card(port),
        attribute(ifname),
        size(port)
    )
}

/// Where QEMU may have its socket for datagrams to vswitchd's at `path`: beside it, so that vswitchd sees it wherever it is confined. `None`
/// where a path there is longer than a socket's may be.
fn beside(port: &PortInfo, path: &str) -> Option<String> {
    let folder = Path::new(path).parent()?.join(format!("{}.qemu", port.name));
    let mut places = [format!("{path}.qemu"), folder.display().to_string()].into_iter();
    places.find(|place| place.len() <= PATH_MAX_BYTES && place != path)
}

/// What to give QEMU as the other end of a socket.
fn sockets(port: &PortInfo, socket: &SocketInfo) -> String {
    let (netdev, more) = if port.kind == "dgram" { dgram(port, socket) } else { stream(socket) };
    format!(
        "\nThe other end may be a QEMU guest (7.2 or later):\n\
         \x20 qemu-system-x86_64 … \\\n\
         \x20   -netdev {netdev} \\\n\
         \x20   -device {}\n{more}libvirt has no interface of this type.\n",
        card(port)
    )
}

/// The netdev, and what to know of it.
fn dgram(port: &PortInfo, socket: &SocketInfo) -> (String, &'static str) {
    let mut more = "";
    let path = socket.path.clone().unwrap_or_default();
    let (ours, theirs) = match (socket.role, &socket.peer) {
        (Role::Client, own) => (own.clone().unwrap_or_default(), path),
        (Role::Server, Some(peer)) => (path, peer.clone()),
        (Role::Server, None) => {
            let theirs = beside(port, &path).unwrap_or_else(|| {
                more = "PLACE is a path for QEMU's own socket, which vswitchd sees, too: beside its own there is none of at most 107\n\
                        bytes.\n";
                "PLACE".to_owned()
            });
            (path, theirs)
        }
    };
    let netdev = format!(
        "dgram,id=net0,local.type=unix,local.path={},remote.type=unix,remote.path={}",
        value(&theirs),
        value(&ours)
    );
    (netdev, more)
}

/// The netdev, and what to know of it.
fn stream(socket: &SocketInfo) -> (String, &'static str) {
    let address = match (&socket.path, &socket.address) {
        (Some(path), _) => format!("addr.type=unix,addr.path={}", value(path)),
        (None, address) => {
            let address = address.as_deref().unwrap_or_default();
            let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
            let host = match host.trim_matches(['[', ']']) {
                "0.0.0.0" | "::" => "HOST",
                host => host,
            };
            format!("addr.type=inet,addr.host={},addr.port={}", value(host), value(port))
        }
    };
    if is_client(Some(socket)) {
        (format!("stream,id=net0,server=on,{address}"), "")
    } else {
        let again = "Before QEMU 8.0 it connects once, when it starts; from then on ',reconnect=1' has it come back after vswitchd\n\
                     was restarted. (Here vswitchd may be the client instead: it always comes back.)\n";
        (format!("stream,id=net0,server=off,{address}"), again)
    }
}

/// What to plug into a folder, or whose folder it is.
fn plugs(port: &PortInfo, path: &str, role: Role) -> String {
    if role == Role::Client {
        return format!("\nThe other end is a VDE switch:\n\x20 vde_switch --sock {}\n", word(path));
    }
    format!(
        "\nThe plug may be a QEMU guest; QEMU plugs in once, when it starts:\n\
         \x20 qemu-system-x86_64 … \\\n\
         \x20   -netdev vde,id=net0,sock={} \\\n\
         \x20   -device {}\n\
         or a TAP device:\n\
         \x20 vde_plug2tap --sock {} tap0\n\
         It has to run as a user who may write to the folder.\n\
         libvirt has no interface of this type.\n",
        value(path),
        card(port),
        word(path)
    )
}

/// What to start QEMU with, and what to tell libvirt.
fn vhost_user(port: &PortInfo, path: &str, role: Role) -> String {
    let place = attribute(path);
    let (chardev, source) = match role {
        Role::Server => (
            "reconnect=1",
            format!(
                "<source type='unix' path='{place}' mode='client'>\n\
                 \x20     <reconnect enabled='yes' timeout='1'/>\n\
                 \x20   </source>"
            ),
        ),
        Role::Client => ("server=on,wait=off", format!("<source type='unix' path='{place}' mode='server'/>")),
    };
    format!(
        "\nStart QEMU with the guest's memory shared, all of it:\n\
         \x20 qemu-system-x86_64 … -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\\n\
         \x20   -chardev socket,id=char0,path={},{chardev} \\\n\
         \x20   -netdev vhost-user,id=net0,chardev=char0 \\\n\
         \x20   -device {}\n\
         For N queues: queues=N at the netdev, mq=on,vectors=2N+2 at the device; at most {}.\n\
         Without KVM, QEMU 7.2 crashes unless vectors=0 is at the device.\n\
         With libvirt, in the domain:\n\
         \x20 <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\n\
         and in its <devices>:\n\
         \x20 <interface type='vhostuser'>\n\
         \x20   {source}\n\
         \x20   <model type='virtio'/>\n{}\
         \x20 </interface>\n\
         QEMU must be allowed to write to the socket, or vswitchd to its: see to the directory's permissions.\n",
        value(path),
        card(port),
        port.queues,
        size(port)
    )
}
