//! The definitions of vswitchctl: what can be typed, and from the same lines help, completions and man pages.
//!
//! Options that are part of a request are the fields of the types in [`crate::api`]; what is here is only
//! nouns, verbs and tolerance (`--may-exist`).

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::api::values::{Cidr, Mac};
use crate::api::{
    BridgeAdd, BridgeSet, FdbAdd, FdbKey, FdbSelect, NeighAdd, NeighKey, NeighSelect, PortAdd, PortSet,
};
use crate::config::DEFAULT_SOCKET;

/// Control the virtual switch vswitchd
///
/// Shows and changes the bridges, ports and stations of vswitchd(8), over its control socket. Every change is
/// all or nothing. Adding what exists and removing what does not are refused, unless --may-exist or
/// --if-exists says otherwise.
///
/// The exit status is 0 when it is done, 1 when it was refused (with one line on standard error), 2 for wrong
/// usage.
#[derive(Parser, Debug)]
#[command(name = "vswitchctl", version, max_term_width = 100, propagate_version = true)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Control socket of vswitchd
    #[arg(long, global = true, value_name = "S", default_value = DEFAULT_SOCKET, help_heading = "Global options")]
    pub socket: PathBuf,
    /// Write one JSON document instead of a table
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub noun: Noun,
}

/// What a command is about.
#[derive(Subcommand, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum Noun {
    /// Show the daemon and its workers
    Status,
    /// Bridges: learning domains
    #[command(subcommand)]
    Bridge(BridgeVerb),
    /// Ports: where frames come in and go out
    #[command(subcommand)]
    Port(Box<PortVerb>),
    /// Stations that bridges know: the forwarding database
    #[command(subcommand)]
    Fdb(FdbVerb),
    /// Neighbours: which station has which IP address, for tunnels with --neigh-suppress
    #[command(subcommand)]
    Neigh(NeighVerb),
    /// Guests that attach themselves: who may
    #[command(subcommand)]
    Attach(AttachVerb),
    /// Show counters, and drops by reason
    Stats(StatsArgs),
    /// Make vswitchd read its configuration again and apply the difference
    Reload,
    /// Network namespaces; works without vswitchd
    #[command(subcommand)]
    Netns(NetnsVerb),
    /// Pairs of virtual Ethernet interfaces; works without vswitchd
    #[command(subcommand)]
    Veth(Box<VethVerb>),
    /// Write the completion script of a shell, such as 'vswitchctl completions bash'
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write a manual page, or all of them into a directory
    Man {
        /// Name of a page, such as vswitchctl-port-add, or a directory
        #[arg(value_name = "NAME|DIR")]
        target: OsString,
    },
}

/// Tolerance of an addition.
#[derive(Args, Clone, Copy, Debug)]
pub struct MayExist {
    /// Fine when it exists with the same attributes
    #[arg(long)]
    pub may_exist: bool,
}

/// Tolerance of a removal.
#[derive(Args, Clone, Copy, Debug)]
pub struct IfExists {
    /// Fine when there is none
    #[arg(long)]
    pub if_exists: bool,
}

/// What to do with bridges.
#[derive(Subcommand, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum BridgeVerb {
    /// Add a bridge
    Add {
        #[command(flatten)]
        bridge: BridgeAdd,
        #[command(flatten)]
        tolerance: MayExist,
    },
    /// Remove a bridge
    Del {
        /// Name of the bridge
        #[arg(value_name = "BR")]
        name: String,
        /// Remove its ports too
        #[arg(long)]
        with_ports: bool,
        #[command(flatten)]
        tolerance: IfExists,
    },
    /// Change settings of a bridge; those not given stay
    Set {
        /// Name of the bridge
        #[arg(value_name = "BR")]
        name: String,
        #[command(flatten)]
        settings: BridgeSet,
    },
    /// Show bridges
    Show {
        /// Only this one
        #[arg(value_name = "BR")]
        name: Option<String>,
    },
}

/// What to do with ports.
#[derive(Subcommand, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum PortVerb {
    /// Add a port
    ///
    /// Options that a type does not know are refused. tap takes --ifname, --netns, --mac, --mtu, --address, --gateway,
    /// --queues and --no-offload; packet --ifname and --netns; internal --ifname, --mac, --mtu and --address; macvtap
    /// --lower, --mode, --ifname, --netns, --mac, --mtu and --queues; vhost-user --path, --server, --client, --queues,
    /// --memory-max, --own-thread and --mtu; vde --path, --server, --client, --mode and --mtu; stream and dgram those under 'Sockets' and --mtu; tunnels those under
    /// 'Tunnels', --netns and --mtu.
    Add {
        #[command(flatten)]
        port: Box<PortAdd>,
        #[command(flatten)]
        tolerance: MayExist,
    },
    /// Remove a port, with the interface if vswitchd created it
    Del {
        /// Name of the port
        name: String,
        #[command(flatten)]
        tolerance: IfExists,
    },
    /// Change settings of a port while it runs; those not given stay
    Set {
        /// Name of the port
        name: String,
        #[command(flatten)]
        settings: PortSet,
    },
    /// Show ports
    Show {
        /// Only this one, with everything about it
        name: Option<String>,
    },
    /// Say in words what a port does and how to attach something to it
    Explain {
        /// Name of the port
        name: String,
    },
}

/// What to do with stations.
#[derive(Subcommand, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum FdbVerb {
    /// Show stations
    Show {
        #[command(flatten)]
        select: FdbSelect,
    },
    /// Add a static entry
    Add {
        #[command(flatten)]
        entry: FdbAdd,
        #[command(flatten)]
        tolerance: MayExist,
    },
    /// Remove an entry, in one VLAN or in all
    Del {
        /// Address of the station
        #[arg(value_name = "MAC")]
        mac: Mac,
        #[command(flatten)]
        key: FdbKey,
        #[command(flatten)]
        tolerance: IfExists,
    },
    /// Forget dynamic entries
    Flush {
        #[command(flatten)]
        select: FdbSelect,
    },
}

/// What to do with neighbours.
#[derive(Subcommand, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum NeighVerb {
    /// Show neighbours
    Show {
        #[command(flatten)]
        select: NeighSelect,
    },
    /// Add a static neighbour, which frames do not change
    Add {
        #[command(flatten)]
        neighbour: NeighAdd,
        #[command(flatten)]
        tolerance: MayExist,
    },
    /// Remove a neighbour, in one VLAN or in all
    Del {
        /// The address
        #[arg(value_name = "IP")]
        address: IpAddr,
        #[command(flatten)]
        key: NeighKey,
        #[command(flatten)]
        tolerance: IfExists,
    },
    /// Forget dynamic neighbours
    Flush {
        #[command(flatten)]
        select: NeighSelect,
    },
}

/// What to do with the rules of the attach socket.
#[derive(Subcommand, Debug)]
pub enum AttachVerb {
    /// Show the rules: which users and groups may attach guests, and to which bridges; root always may
    Show,
}

/// How to show counters.
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// Only of this port
    pub port: Option<String>,
    /// Show rates, every SECS seconds [default: 1]; with --json a stream, one document a line
    #[arg(long, value_name = "SECS", num_args = 0..=1, default_missing_value = "1", value_parser = interval)]
    pub watch: Option<Duration>,
    /// With --watch: end after this many rounds
    #[arg(long, value_name = "N", requires = "watch")]
    pub count: Option<u64>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let secs: Option<f64> = text.parse().ok();
    secs.filter(|secs| (0.05..=86_400.0).contains(secs))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("'{text}' is not a number of seconds from 0.05 to 86400"))
}

/// What to do with namespaces.
#[derive(Subcommand, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum NetnsVerb {
    /// Add a namespace, with its loopback interface up
    Add {
        /// Name under /run/netns
        name: String,
        #[command(flatten)]
        tolerance: MayExist,
    },
    /// Remove a namespace
    Del {
        /// Name under /run/netns
        name: String,
        #[command(flatten)]
        tolerance: IfExists,
    },
    /// List namespaces
    List,
    /// Run a command in a namespace
    Exec {
        /// Name under /run/netns, or a path
        name: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
}

/// What to do with veth pairs.
#[derive(Subcommand, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum VethVerb {
    /// Add a pair, both ends up
    Add {
        #[command(flatten)]
        pair: VethAdd,
        #[command(flatten)]
        tolerance: MayExist,
    },
    /// Remove a pair
    Del {
        /// Either end
        name: String,
        /// Namespace of that end: a name under /run/netns or a path [default: this one]
        #[arg(long, value_name = "NS")]
        netns: Option<String>,
        #[command(flatten)]
        tolerance: IfExists,
    },
}

/// A veth pair to add.
#[derive(Args, Debug)]
pub struct VethAdd {
    /// Name of one end
    pub a: String,
    /// Name of the other end
    pub b: String,
    /// Namespace of A: a name under /run/netns or a path [default: this one]
    #[arg(long, value_name = "NS")]
    pub netns_a: Option<String>,
    /// Namespace of B: a name under /run/netns or a path [default: this one]
    #[arg(long, value_name = "NS")]
    pub netns_b: Option<String>,
    /// Address of A with prefix length; may be repeated
    #[arg(long, value_name = "CIDR")]
    pub address_a: Vec<Cidr>,
    /// Address of B with prefix length; may be repeated
    #[arg(long, value_name = "CIDR")]
    pub address_b: Vec<Cidr>,
    /// MAC address of A
    #[arg(long, value_name = "MAC")]
    pub mac_a: Option<Mac>,
    /// MAC address of B
    #[arg(long, value_name = "MAC")]
    pub mac_b: Option<Mac>,
    /// MTU of both, in bytes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(68..=65535))]
    pub mtu: Option<u32>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument};

    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
        crate::vswitchd::Options::command().debug_assert();
        crate::attach::helper::Options::command().debug_assert();
    }

    #[test]
    fn the_contract_parses() {
        for line in [
            "status",
            "bridge add br0 --ageing 60 --fdb-max 100 --vlan-filtering on --default-pvid 5 --may-exist",
            "bridge set br0 --ageing-secs 0",
            "bridge del br0 --with-ports --if-exists",
            "bridge show -j",
            "bridge show br0",
            "port add p1 --bridge br0 --type tap --ifname t1 --netns ns1 --mac 02:00:00:00:00:01 --mtu 9000 --address 10.0.0.1/24 --address fd00::1/64 --gateway 10.0.0.254 --queues 2 --no-offload",
            "port add p2 --bridge br0 --type packet --ifname veth0 --netns /proc/1/ns/net --access 10",
            "port add p3 --bridge br0 --type internal --address 10.0.0.2/24 --trunk 10,20-30 --native 1",
            "port set p1 --learning off --flood off --isolated on --hairpin on --vlan default",
            "port show p1 --json",
            "port explain p1",
            "fdb show --bridge br0 --port p1 --vlan 10",
            "fdb add 02:00:00:00:00:05 --port p1 --vlan 10",
            "fdb del 02:00:00:00:00:05 --bridge br0 --vlan 10",
            "fdb flush --port p1",
            "port add vx0 --bridge br0 --type vxlan --vni 1 --local 10.0.0.1 --neigh-suppress on",
            "port add vm1 --bridge br0 --type stream --path /run/vm1.sock --client --mtu 9000",
            "port add vm1 --bridge br0 --type stream --path /run/vm1.sock --server --mode 600",
            "port add vm1 --bridge br0 --type stream --listen 127.0.0.1:5000",
            "port add vm1 --bridge br0 --type stream --connect [::1]:5000",
            "port add vm1 --bridge br0 --type dgram --path /run/ours.sock --peer /run/theirs.sock",
            "port add vm1 --bridge br0 --type vde --path /run/vm1.vde --mode 666",
            "neigh show --bridge br0 --vlan 10",
            "neigh add 10.0.0.1 --mac 02:00:00:00:00:05 --bridge br0 --vlan 10 --may-exist",
            "neigh add fe80::1 --mac 02:00:00:00:00:05 --bridge br0 --router",
            "neigh del 10.0.0.1 --bridge br0 --vlan 10 --if-exists",
            "neigh flush --bridge br0",
            "attach show --json",
            "stats p1 --watch",
            "stats --watch 0.5 --count 3",
            "--socket /tmp/s reload",
            "netns exec ns1 ip -4 addr",
            "netns exec ns1 -- sh -c true",
            "veth add a b --may-exist --netns-a n1 --netns-b n2 --address-a 10.0.0.1/24",
            "completions zsh",
            "man vswitchctl",
        ] {
            let words = std::iter::once("vswitchctl").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    /// The command of vswitchctl that begins a text of the documentation, if one does that can be typed.
    fn typed(text: &str) -> Option<Vec<String>> {
        let text = text.strip_prefix("# ").unwrap_or(text).strip_prefix("vswitchctl ")?;
        // Up to where a shell goes on by itself, or a comment begins.
        let words = text
            .split_whitespace()
            .take_while(|word| !["&&", "|", ";", "#"].contains(word) && !word.starts_with('>'));
        let words = words.map(|word| match word.trim_matches(['[', ']', ',', '.']) {
            "SECS" | "N" => "1".to_owned(),
            word => word.replace("\\|", "|").split('|').next().unwrap_or_default().to_owned(),
        });
        let words: Vec<String> = words.collect();
        (!words.iter().any(|word| word.contains(['…', '$']))).then_some(words)
    }

    #[test]
    fn the_documentation_parses() {
        let (mut tried, mut wrong) = (0, Vec::new());
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for file in [
            "README.md",
            "CHANGELOG.md",
            "docs/guide.md",
            "docs/guests.md",
            "docs/tunnels.md",
            "docs/performance.md",
        ] {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            let inline = text.split('`').skip(1).step_by(2).filter(|code| !code.contains('\n'));
            for code in inline.chain(text.lines().map(str::trim)) {
                let Some(words) = typed(code) else { continue };
                let few = words.len() < 3;
                match Cli::try_parse_from(std::iter::once("vswitchctl".to_owned()).chain(words)) {
                    Ok(Cli { noun: Noun::Port(verb), .. }) => {
                        if let PortVerb::Add { port, .. } = *verb
                            && let Err(error) = port.to_spec()
                        {
                            wrong.push(format!("{file}: {code}: {error}"));
                        }
                    }
                    Ok(_) => {}
                    // It is spoken of, and nothing to type.
                    Err(error)
                        if few
                            && matches!(
                                error.kind(),
                                MissingRequiredArgument | DisplayHelpOnMissingArgumentOrSubcommand
                            ) =>
                    {
                        continue;
                    }
                    Err(error) => {
                        wrong.push(format!(
                            "{file}: {code}: {}",
                            error.to_string().lines().next().unwrap_or_default()
                        ));
                    }
                }
                tried += 1;
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(tried > 100, "only {tried} commands were found");
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "",
            "port",
            "bridge add",
            "port add p1 --bridge br0",
            "port add p1 --bridge br0 --type bond",
            "port set p1 --learning yes",
            "port set p1 --access 4095",
            "port set p1 --access 5 --trunk 6",
            "port set p1 --vlan 5",
            "port add p1 --bridge br0 --type tap --queues 0",
            "bridge add br0 --fdb-max 0",
            "port add p1 --bridge br0 --type stream --path /s --server --client",
            "port add p1 --bridge br0 --type stream --path /s --listen 127.0.0.1:5000",
            "port add p1 --bridge br0 --type stream --listen localhost",
            "port add p1 --bridge br0 --type stream --path /s --mode 999",
            "fdb del 02:00:00:00:00:05",
            "fdb add ff:ff --port p1",
            "neigh add 10.0.0.1/24 --mac 02:00:00:00:00:05 --bridge br0",
            "neigh add 10.0.0.1 --bridge br0",
            "neigh del 10.0.0.1",
            "stats --watch 0",
            "stats --count 3",
            "netns exec ns1",
        ] {
            let words = std::iter::once("vswitchctl").chain(line.split(' ').filter(|word| !word.is_empty()));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
