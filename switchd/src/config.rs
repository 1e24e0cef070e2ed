//! The configuration file: TOML, the same names as the command line.
//!
//! A file is read, checked as a whole and turned into a [`Layout`] before anything is touched. Everything
//! that can be known without looking at the machine is refused here, with the file's line: unknown keys,
//! names twice, a port on a bridge that is not there, VLAN options where nobody filters, one interface on two
//! ports. What only the kernel knows comes up when the layout is applied, and is then reported with the line
//! of the object as well.
//!
//! Interfaces of `packet` ports need not exist (they may be a guest's that starts later): such a port waits.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use toml::Spanned;
use vswitch::bridge::neighbours::NEIGHBOURS_MAX;
use vswitch::spec::{Meeting, PortSpec};
use vswitch::switch::{Options, PollMode};

use crate::api::size::Size;
use crate::api::{AttachRule, BridgeAdd, FdbAdd, NeighAdd, PortAdd, none_such};
use crate::attach;
use crate::plan::{Entry, Layout, collide, entry_vlan, same_netns};

/// Where the configuration is looked for.
pub const DEFAULT_CONFIG: &str = "/etc/vswitchd/vswitchd.toml";
/// Where the control socket is.
pub const DEFAULT_SOCKET: &str = "/run/vswitchd/ctl.sock";
/// A configuration of more bytes than this is a mistake.
const SIZE_MAX_BYTES: u64 = 16 << 20;

/// Settings of the daemon itself: options of vswitchd, and the `[daemon]` table.
#[derive(Args, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct DaemonSection {
    /// Control socket [default: /run/vswitchd/ctl.sock]
    #[arg(long, value_name = "S")]
    pub socket: Option<PathBuf>,
    /// Socket for guests that attach themselves, or 'none' [default: attach.sock beside the control socket]
    #[arg(long, value_name = "S")]
    pub attach_socket: Option<PathBuf>,
    /// Worker threads [default: auto, one a core]
    #[arg(long, value_name = "N|auto")]
    pub workers: Option<Workers>,
    /// CPUs to pin workers to, such as 0,2-3 [default: not pinned]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
    /// How workers wait for frames [default: adaptive]
    #[arg(long, value_name = "MODE")]
    pub poll: Option<Poll>,
    /// Memory that the guests of all vhost-user ports may share, such as 512G [default: auto, eight times the machine's memory and
    /// swap]
    #[arg(long, value_name = "BYTES|auto")]
    pub guest_memory_max: Option<GuestMemory>,
    /// What to log: error, warn, info, debug, trace, or by module, such as info,vswitch=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Do not start when the kernel refuses one of the configuration's ports; otherwise that port is 'failed' and the others run [default: false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub strict: Option<bool>,
}

impl DaemonSection {
    /// These settings, and those of `other` where these are silent.
    #[must_use]
    pub fn or(self, other: DaemonSection) -> DaemonSection {
        DaemonSection {
            socket: self.socket.or(other.socket),
            attach_socket: self.attach_socket.or(other.attach_socket),
            workers: self.workers.or(other.workers),
            cpus: self.cpus.or(other.cpus),
            poll: self.poll.or(other.poll),
            guest_memory_max: self.guest_memory_max.or(other.guest_memory_max),
            log: self.log.or(other.log),
            strict: self.strict.or(other.strict),
        }
    }

    /// Names of the settings in which `other` differs.
    #[must_use]
    pub fn differing(&self, other: &DaemonSection) -> Vec<&'static str> {
        let differs = [
            ("socket", self.socket != other.socket),
            ("attach_socket", self.attach_socket != other.attach_socket),
            ("workers", self.workers != other.workers),
            ("cpus", self.cpus != other.cpus),
            ("poll", self.poll != other.poll),
            ("guest_memory_max", self.guest_memory_max != other.guest_memory_max),
            ("log", self.log != other.log),
            ("strict", self.strict != other.strict),
        ];
        differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }

    /// As the data plane wants it.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            workers: match self.workers {
                Some(Workers::Number(number)) => Some(number),
                Some(Workers::Auto) | None => None,
            },
            cpus: self.cpus.as_ref().map(|list| list.0.clone()).unwrap_or_default(),
            poll: self.poll.unwrap_or_default().into(),
            guest_memory_max: match self.guest_memory_max {
                Some(GuestMemory::Bytes(Size(bytes))) => Some(bytes),
                Some(GuestMemory::Auto) | None => None,
            },
            instance: self.instance(),
        }
    }

    /// The control socket's path, which no two daemons of a machine have in common; nothing where it is the default, wherever
    /// that may be one day.
    fn instance(&self) -> String {
        let socket = std::path::absolute(self.socket()).unwrap_or_else(|_| self.socket().to_owned());
        if socket == Path::new(DEFAULT_SOCKET) {
            String::new()
        } else {
            socket.to_string_lossy().into_owned()
        }
    }

    /// The control socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET))
    }

    /// The attach socket's path, if there shall be one.
    #[must_use]
    pub fn attach_socket(&self) -> Option<PathBuf> {
        match &self.attach_socket {
            None => Some(attach::beside(self.socket())),
            Some(off) if off.as_os_str().is_empty() || off.as_os_str() == "none" => None,
            Some(path) => Some(path.clone()),
        }
    }
}

/// How many workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workers {
    /// One a core.
    Auto,
    /// This many.
    Number(usize),
}

impl Workers {
    /// More than this many is a slip of the finger.
    const MOST: usize = 1024;
}

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Workers::Auto),
            (_, Ok(number)) if (1..=Self::MOST).contains(&number) => Ok(Workers::Number(number)),
            _ => Err(format!("'{text}' workers: expected 'auto' or a number from 1 to {}", Self::MOST)),
        }
    }
}

/// How much memory the guests of all vhost-user ports may share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestMemory {
    /// By the machine's memory.
    Auto,
    /// This much.
    Bytes(Size),
}

impl FromStr for GuestMemory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(GuestMemory::Auto),
            text => text.parse().map(GuestMemory::Bytes).map_err(|error| format!("{error}, nor 'auto'")),
        }
    }
}

/// CPU numbers, written `0,2-3`; in TOML also an array of numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuList(pub Vec<usize>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a list of CPUs such as 0,2-3");
        let number =
            |text: &str| text.trim().parse().ok().filter(|&cpu: &usize| cpu < 4096).ok_or_else(wrong);
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = number(first)?..=number(last)?;
            if range.is_empty() || range.clone().any(|cpu| cpus.contains(&cpu)) {
                return Err(wrong());
            }
            cpus.extend(range);
        }
        Ok(CpuList(cpus))
    }
}

/// How workers wait for frames.
#[derive(ValueEnum, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Spin while it pays, then sleep
    #[default]
    Adaptive,
    /// Never sleep
    Busy,
    /// Sleep at once
    Wait,
}

impl From<Poll> for PollMode {
    fn from(poll: Poll) -> Self {
        match poll {
            Poll::Adaptive => PollMode::Adaptive,
            Poll::Busy => PollMode::Busy,
            Poll::Wait => PollMode::Wait,
        }
    }
}

impl fmt::Display for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Poll::Adaptive => "adaptive",
            Poll::Busy => "busy",
            Poll::Wait => "wait",
        })
    }
}

/// A number or a text that `FromStr` understands.
fn text_or_numbers<'de, D: Deserializer<'de>>(
    deserializer: D,
    expecting: &'static str,
) -> Result<String, D::Error> {
    struct Text(&'static str);
    impl<'de> Visitor<'de> for Text {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<String, A::Error> {
            let mut parts = Vec::new();
            while let Some(number) = array.next_element::<i64>()? {
                parts.push(number.to_string());
            }
            Ok(parts.join(","))
        }
    }
    deserializer.deserialize_any(Text(expecting))
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_numbers(deserializer, "\"auto\" or a number of workers")?.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for GuestMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_numbers(deserializer, "\"auto\" or a number of bytes such as \"64G\"")?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for CpuList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_numbers(deserializer, "CPUs: \"0,2-3\" or an array of numbers")?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    daemon: DaemonSection,
    #[serde(default)]
    bridge: Vec<Spanned<BridgeAdd>>,
    #[serde(default)]
    port: Vec<Spanned<PortAdd>>,
    #[serde(default)]
    fdb: Vec<Spanned<FdbAdd>>,
    #[serde(default)]
    neigh: Vec<Spanned<NeighAdd>>,
    #[serde(default)]
    attach: Vec<Spanned<AttachRule>>,
}

/// A configuration that was read and checked.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where it came from.
    pub path: PathBuf,
    /// The `[daemon]` table.
    pub daemon: DaemonSection,
    /// What shall be.
    pub layout: Layout,
    /// Who may attach guests.
    pub attach: Vec<AttachRule>,
    /// Line of each object, by its name in messages ([`crate::plan::Step`]'s `Display`).
    lines: HashMap<String, usize>,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// One line: what is wrong, where, and the remedy.
    pub fn read(path: &Path) -> Result<Config, String> {
        let name = path.display();
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)
            .map_err(|error| format!("cannot read configuration {name}: {error}"))?;
        file.take(SIZE_MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("cannot read configuration {name}: {error}"))?;
        if bytes.len() as u64 > SIZE_MAX_BYTES {
            return Err(format!("configuration {name} is larger than {} MiB", SIZE_MAX_BYTES >> 20));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            format!("{name}: byte {} is not UTF-8: save the file as UTF-8", error.utf8_error().valid_up_to())
        })?;
        Config::parse(path, &text)
    }

    /// Checks `text`, which came from `path`.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Config, String> {
        Config::check(path, text).map_err(|error| crate::one_line(&error))
    }

    fn check(path: &Path, text: &str) -> Result<Config, String> {
        let line_of =
            |offset: usize| 1 + text.as_bytes().iter().take(offset).filter(|&&b| b == b'\n').count();
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| format!("{}:", line_of(span.start))).unwrap_or_default();
            let message = error.message().trim().replace('\n', "; ");
            format!("{}:{line} {message}", path.display())
        })?;
        let mut checker = Checker { config: Config { path: path.to_owned(), ..Config::default() } };
        checker.config.daemon = file.daemon;
        if let Some(log) = &checker.config.daemon.log {
            crate::log::filter(log).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let located = |line: usize| move |error: String| format!("{}:{line}: {error}", path.display());
        for bridge in file.bridge {
            let line = line_of(bridge.span().start);
            checker.bridge(&bridge.into_inner(), line).map_err(located(line))?;
        }
        for port in file.port {
            let line = line_of(port.span().start);
            checker.port(&port.into_inner(), line).map_err(located(line))?;
        }
        for entry in file.fdb {
            let line = line_of(entry.span().start);
            checker.entry(&entry.into_inner(), line).map_err(located(line))?;
        }
        for neighbour in file.neigh {
            let line = line_of(neighbour.span().start);
            checker.neighbour(&neighbour.into_inner(), line).map_err(located(line))?;
        }
        for rule in file.attach {
            let line = line_of(rule.span().start);
            let rule = rule.into_inner();
            rule.check().map_err(located(line))?;
            checker.config.attach.push(rule);
        }
        Ok(checker.config)
    }

    /// Where `object` is, as `path:line: `, if it is in the file at all.
    #[must_use]
    pub fn place_of(&self, object: &str) -> String {
        self.lines.get(object).map(|line| format!("{}:{line}: ", self.path.display())).unwrap_or_default()
    }
}

/// Takes objects in the order of the file.
struct Checker {
    config: Config,
}

impl Checker {
    /// Remembers where an object is; refuses the second of a name.
    fn place(&mut self, object: String, line: usize) -> Result<(), String> {
        match self.config.lines.get(&object) {
            Some(first) => Err(format!("{object} is there twice, first in line {first}: remove one")),
            None => {
                self.config.lines.insert(object, line);
                Ok(())
            }
        }
    }

    fn bridge(&mut self, bridge: &BridgeAdd, line: usize) -> Result<(), String> {
        let spec = bridge.to_spec()?;
        self.place(format!("bridge '{}'", spec.name), line)?;
        self.config.layout.bridges.push(spec);
        Ok(())
    }

    fn port(&mut self, port: &PortAdd, line: usize) -> Result<(), String> {
        let spec = port.to_spec()?;
        let owner = format!("port '{}'", spec.name);
        let bridges = &self.config.layout.bridges;
        let Some(bridge) = bridges.iter().find(|bridge| bridge.name == spec.bridge) else {
            return Err(if bridges.is_empty() {
                format!("{owner}: no bridge '{}' in this file: add a [[bridge]]", spec.bridge)
            } else {
                let names = bridges.iter().map(|bridge| bridge.name.as_str());
                format!("{owner}: {}", none_such("bridge", &spec.bridge, names))
            });
        };
        if (port.has_vlan_options() || port.vni_map.is_some()) && !bridge.vlan_filtering {
            return Err(format!(
                "{owner} has VLAN options, but bridge '{}' does not filter VLANs: give it 'vlan_filtering = true'",
                bridge.name
            ));
        }
        for other in self.config.layout.ports.iter().filter(|other| other.name != spec.name) {
            check_beside(&spec, other)?;
        }
        self.place(owner, line)?;
        self.config.layout.ports.push(spec);
        Ok(())
    }

    fn entry(&mut self, entry: &FdbAdd, line: usize) -> Result<(), String> {
        entry.check()?;
        let layout = &self.config.layout;
        let Some(port) = layout.ports.iter().find(|port| port.name == entry.port) else {
            let names = layout.ports.iter().map(|port| port.name.as_str());
            return Err(format!("fdb entry {}: {}", entry.mac, none_such("port", &entry.port, names)));
        };
        let Some(bridge) = layout.bridges.iter().find(|bridge| bridge.name == port.bridge) else {
            return Err(format!("fdb entry {}: no bridge '{}'", entry.mac, port.bridge));
        };
        let vlan = entry_vlan(bridge, port, entry.vlan.map(|vlan| vlan.0))
            .map_err(|error| format!("fdb entry {}: {error}", entry.mac))?;
        let entry = Entry {
            bridge: bridge.name.clone(),
            vlan,
            mac: entry.mac.0,
            port: entry.port.clone(),
            remote: entry.remote,
        };
        let (most, name) = (bridge.fdb_max as usize, bridge.name.clone());
        self.place(crate::plan::Step::AddEntry(entry.clone()).to_string(), line)?;
        self.config.layout.entries.insert(entry);
        if self.config.layout.entries.iter().filter(|entry| entry.bridge == name).count() > most {
            return Err(format!("bridge '{name}' has room for {most} stations: raise its fdb_max"));
        }
        Ok(())
    }

    fn neighbour(&mut self, asked: &NeighAdd, line: usize) -> Result<(), String> {
        let layout = &self.config.layout;
        let Some(bridge) = layout.bridges.iter().find(|bridge| bridge.name == asked.bridge) else {
            let names = layout.bridges.iter().map(|bridge| bridge.name.as_str());
            return Err(format!(
                "neighbour {}: {}",
                asked.address,
                none_such("bridge", &asked.bridge, names)
            ));
        };
        let spec = asked.to_spec(bridge).map_err(|error| format!("neighbour {}: {error}", asked.address))?;
        self.place(crate::plan::Step::AddNeighbour(spec.clone()).to_string(), line)?;
        let name = spec.bridge.clone();
        self.config.layout.neighbours.insert(spec);
        if self.config.layout.neighbours.iter().filter(|known| known.bridge == name).count() > NEIGHBOURS_MAX
        {
            return Err(format!("bridge '{name}' has room for {NEIGHBOURS_MAX} static neighbours"));
        }
        Ok(())
    }
}

/// Refuses a port that the switch would refuse because another of the file is there.
fn check_beside(spec: &PortSpec, other: &PortSpec) -> Result<(), String> {
    let (owner, holder) = (&spec.name, &other.name);
    if let Some(shared) = other.shares(spec, same_netns) {
        let below = if shared.below { "below" } else { "that of" };
        return Err(format!(
            "port '{owner}': interface '{}' is {below} port '{holder}' already: give another ifname",
            shared.ifname
        ));
    }
    match spec.kind.shares_socket(&other.kind) {
        Some(Meeting::File(path)) => {
            return Err(format!(
                "port '{owner}': socket {} is that of port '{holder}' already: give another path",
                path.display()
            ));
        }
        Some(Meeting::Tcp(address)) => {
            return Err(format!(
                "port '{owner}': {address} is where port '{holder}' listens already: give another address"
            ));
        }
        None => {}
    }
    if collide(spec, other) {
        return Err(format!(
            "port '{owner}': its packets are those of port '{holder}': give another number, local address or UDP port, or both \
             'strict_remotes = true' and remotes of their own"
        ));
    }
    Ok(())
}

/// The interface of a port: its namespace's file (empty: vswitchd's own) and its name.
pub(crate) fn interface(spec: &PortSpec) -> Option<(PathBuf, String)> {
    let (netns, ifname) = spec.kind.interface()?;
    Some((netns.as_ref().map(vswitch::spec::Netns::path).unwrap_or_default(), ifname.to_owned()))
}

/// Names in a layout, for origins.
pub(crate) fn names(layout: &Layout) -> (BTreeSet<String>, BTreeSet<String>) {
    let bridges = layout.bridges.iter().map(|bridge| bridge.name.clone()).collect();
    let ports = layout.ports.iter().map(|port| port.name.clone()).collect();
    (bridges, ports)
}

#[cfg(test)]
mod tests;
