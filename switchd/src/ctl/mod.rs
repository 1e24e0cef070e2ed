//! vswitchctl: what its commands do.
//!
//! A command is a request to the daemon and the showing of its answer: with `--json` the answer as it came,
//! else a table. `netns` and `veth` need no daemon, and neither do completions and manual pages. Changes say
//! nothing when they are done.

mod docs;
mod explain;
mod local;
mod rates;
mod show;
mod table;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser;
use hyper::Method;

use crate::api::{PortInfo, ReloadReport, StatusInfo};
use crate::cli::{AttachVerb, BridgeVerb, Cli, FdbVerb, NeighVerb, Noun, PortVerb, StatsArgs};
use crate::client::{Answer, Client, Refused, Target};
use crate::plain::plain_lines;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads us has read enough ('vswitchctl stats | head').
        Err(Failed::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let text = crate::one_line(&error.to_string());
            let _ = writeln!(io::stderr(), "vswitchctl: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Why a command did not do what it should.
#[derive(Debug)]
enum Failed {
    /// Refused, with the line that says why.
    Refused(Refused),
    /// Standard output does not take it.
    Output(io::Error),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failed::Refused(refused) => refused.fmt(f),
            Failed::Output(error) => write!(f, "cannot write: {error}"),
        }
    }
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Failed::Refused(refused)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Failed::Output(error)
    }
}

impl From<String> for Failed {
    fn from(text: String) -> Self {
        Failed::Refused(Refused(text))
    }
}

type Outcome = Result<(), Failed>;

/// Writes a text to standard output, with a line end, and nothing in it that a terminal would obey.
fn say(text: &str) -> Outcome {
    say_as_it_is(&plain_lines(text))
}

/// The same for what nobody outside has a part in.
fn say_as_it_is(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Writes a JSON document to standard output.
fn say_json(document: &[u8]) -> Outcome {
    let mut out = io::stdout().lock();
    let document = String::from_utf8_lossy(document);
    out.write_all(crate::plain::plain_json(&document).as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Says what would be better, if the daemon knows.
fn hint(port: &PortInfo) {
    if let Some(hint) = port.hint() {
        let _ = writeln!(io::stderr(), "hint: {}", crate::one_line(hint));
    }
}

fn run(cli: Cli) -> Outcome {
    let Cli { socket, json, noun } = cli;
    let session = || Client::new(&socket).map(|client| Session { client, json });
    match noun {
        Noun::Status => session()?.status(),
        Noun::Bridge(verb) => session()?.bridge(verb),
        Noun::Port(verb) => session()?.port(*verb),
        Noun::Fdb(verb) => session()?.fdb(verb),
        Noun::Neigh(verb) => session()?.neigh(verb),
        Noun::Attach(AttachVerb::Show) => session()?.attach(),
        Noun::Stats(args) => session()?.stats(&args),
        Noun::Reload => session()?.reload(),
        Noun::Netns(verb) => local::netns(verb, json),
        Noun::Veth(verb) => local::veth(*verb, json),
        Noun::Completions { shell } => docs::completions(shell),
        Noun::Man { target } => docs::man(&target),
    }
}

/// A command that needs the daemon.
struct Session {
    client: Client,
    json: bool,
}

impl Session {
    /// The answer to a change: nothing, or its document.
    fn done(&self, answer: &Answer) -> Outcome {
        if self.json { say_json(answer.bytes()) } else { Ok(()) }
    }

    /// What is at `target`, as a table made by `show`; a single object is shown as a list of one in JSON.
    fn shown(
        &self,
        target: &Target,
        one: bool,
        show: impl FnOnce(&Answer) -> Result<String, Refused>,
    ) -> Outcome {
        let answer = self.client.get(target)?;
        match (self.json, one) {
            (true, true) => say_json(&[b"[", answer.bytes(), b"]"].concat()),
            (true, false) => say_json(answer.bytes()),
            (false, _) => say(&show(&answer)?),
        }
    }

    fn status(&self) -> Outcome {
        self.shown(&Target::new(["status"]), false, |answer| Ok(show::status(&answer.parse()?)))
    }

    fn bridge(&self, verb: BridgeVerb) -> Outcome {
        match verb {
            BridgeVerb::Add { bridge, tolerance } => {
                let target = Target::new(["bridges"]).flag("may_exist", tolerance.may_exist);
                self.done(&self.client.ask(Method::POST, &target, &bridge)?)
            }
            BridgeVerb::Del { name, with_ports, tolerance } => {
                let target = Target::new(["bridges", &name])
                    .flag("with_ports", with_ports)
                    .flag("if_exists", tolerance.if_exists);
                self.done(&self.client.act(Method::DELETE, &target)?)
            }
            BridgeVerb::Set { name, settings } => {
                if settings.is_empty() {
                    return Err(format!("bridge '{name}': nothing to set: name a setting, see --help").into());
                }
                self.done(&self.client.ask(Method::PATCH, &Target::new(["bridges", &name]), &settings)?)
            }
            BridgeVerb::Show { name: None } => self.shown(&Target::new(["bridges"]), false, |answer| {
                Ok(show::bridges(&answer.parse::<Vec<_>>()?))
            }),
            BridgeVerb::Show { name: Some(name) } => {
                self.shown(&Target::new(["bridges", &name]), true, |answer| {
                    Ok(show::bridge(&answer.parse()?))
                })
            }
        }
    }

    fn port(&self, verb: PortVerb) -> Outcome {
        match verb {
            PortVerb::Add { port, tolerance } => {
                let target = Target::new(["ports"]).flag("may_exist", tolerance.may_exist);
                let answer = self.client.ask(Method::POST, &target, &port)?;
                self.done(&answer)?;
                if !self.json {
                    hint(&answer.parse()?);
                }
                Ok(())
            }
            PortVerb::Del { name, tolerance } => {
                let target = Target::new(["ports", &name]).flag("if_exists", tolerance.if_exists);
                self.done(&self.client.act(Method::DELETE, &target)?)
            }
            PortVerb::Set { name, settings } => {
                if settings.is_empty() {
                    return Err(format!("port '{name}': nothing to set: name a setting, see --help").into());
                }
                self.done(&self.client.ask(Method::PATCH, &Target::new(["ports", &name]), &settings)?)
            }
            PortVerb::Show { name: None } => self
                .shown(&Target::new(["ports"]), false, |answer| Ok(show::ports(&answer.parse::<Vec<_>>()?))),
            PortVerb::Show { name: Some(name) } => {
                self.shown(&Target::new(["ports", &name]), true, |answer| Ok(show::port(&answer.parse()?)))
            }
            PortVerb::Explain { name } => {
                let port: PortInfo = self.client.get(&Target::new(["ports", &name]))?.parse()?;
                // Guests that attach themselves have to find it.
                let attach_socket = match port.attached {
                    Some(_) => {
                        self.client.get(&Target::new(["status"]))?.parse::<StatusInfo>()?.attach_socket
                    }
                    None => None,
                };
                let text = explain::port(&port, attach_socket.as_deref());
                if self.json {
                    say_json(serde_json::json!({"port": name, "text": text}).to_string().as_bytes())
                } else {
                    say(&text)
                }
            }
        }
    }

    fn fdb(&self, verb: FdbVerb) -> Outcome {
        match verb {
            FdbVerb::Show { select } => {
                let target = Target::new(["fdb"]).query(&select)?;
                self.shown(&target, false, |answer| Ok(show::fdb(&answer.parse::<Vec<_>>()?)))
            }
            FdbVerb::Add { entry, tolerance } => {
                let target = Target::new(["fdb"]).flag("may_exist", tolerance.may_exist);
                self.done(&self.client.ask(Method::POST, &target, &entry)?)
            }
            FdbVerb::Del { mac, key, tolerance } => {
                let target = Target::new(["fdb", &mac.to_string()])
                    .query(&key)?
                    .flag("if_exists", tolerance.if_exists);
                self.done(&self.client.act(Method::DELETE, &target)?)
            }
            FdbVerb::Flush { select } => {
                self.done(&self.client.act(Method::POST, &Target::new(["fdb", "flush"]).query(&select)?)?)
            }
        }
    }

    fn neigh(&self, verb: NeighVerb) -> Outcome {
        match verb {
            NeighVerb::Show { select } => {
                let target = Target::new(["neigh"]).query(&select)?;
                self.shown(&target, false, |answer| Ok(show::neigh(&answer.parse::<Vec<_>>()?)))
            }
            NeighVerb::Add { neighbour, tolerance } => {
                let target = Target::new(["neigh"]).flag("may_exist", tolerance.may_exist);
                self.done(&self.client.ask(Method::POST, &target, &neighbour)?)
            }
            NeighVerb::Del { address, key, tolerance } => {
                let target = Target::new(["neigh", &address.to_string()])
                    .query(&key)?
                    .flag("if_exists", tolerance.if_exists);
                self.done(&self.client.act(Method::DELETE, &target)?)
            }
            NeighVerb::Flush { select } => {
                self.done(&self.client.act(Method::POST, &Target::new(["neigh", "flush"]).query(&select)?)?)
            }
        }
    }

    fn attach(&self) -> Outcome {
        self.shown(&Target::new(["attach"]), false, |answer| Ok(show::attach(&answer.parse::<Vec<_>>()?)))
    }

    fn stats(&self, args: &StatsArgs) -> Outcome {
        let mut target = Target::new(["stats"]);
        if let Some(port) = &args.port {
            target = target.query(&[("port", port)])?;
        }
        match args.watch {
            Some(interval) => rates::watch(&self.client, &target, interval, args.count, self.json),
            None => self.shown(&target, false, |answer| {
                Ok(show::stats(&answer.parse::<Vec<_>>()?, args.port.is_some()))
            }),
        }
    }

    fn reload(&self) -> Outcome {
        let answer = self.client.act(Method::POST, &Target::new(["reload"]))?;
        if self.json {
            return say_json(answer.bytes());
        }
        let report: ReloadReport = answer.parse()?;
        for warning in report.warnings {
            let _ = writeln!(io::stderr(), "warning: {}", crate::one_line(&warning));
        }
        Ok(())
    }
}
