//! vswitchd: start, signals, end.
//!
//! Start: read and check the configuration, take the control socket, start the switch, build what the
//! configuration says, tell systemd, serve. End (SIGTERM, SIGINT): stop serving, let requests finish, remove
//! what was created. SIGHUP reloads. The frames have threads of their own; this one only answers requests.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use vswitch::spec::{MacvtapSpec, PortKind, TapSpec};
use vswitch::switch::{Error, Switch};

use crate::api::ReloadReport;
use crate::attach;
use crate::calls::{Calls, Failed, Threads};
use crate::config::{Config, CpuList, DEFAULT_CONFIG, DaemonSection};
use crate::daemon::Daemon;
use crate::log::Log;
use crate::server;
use crate::socket::{CONTROL_MODE, DaemonSocket};

/// Userspace virtual Ethernet switch
///
/// vswitchd switches frames between ports: TAP and macvtap devices that it creates, interfaces that exist, such
/// as veth ends, tunnels, and guests by socket or shared memory. It stays in the foreground and logs to standard
/// error. It starts with or without a configuration and is driven by vswitchctl(1) over its control socket.
///
/// SIGHUP reads the configuration again and applies the difference. SIGTERM and SIGINT remove what was created,
/// the TAPs of attached guests with it, and end it.
#[derive(Parser, Debug)]
#[command(name = "vswitchd", version, max_term_width = 100)]
pub struct Options {
    /// Configuration file [default: /etc/vswitchd/vswitchd.toml, if it exists]
    #[arg(long, value_name = "F")]
    pub config: Option<PathBuf>,
    /// Settings that the configuration may have too; these win.
    #[command(flatten)]
    pub daemon: DaemonSection,
    /// Check the configuration and exit
    #[arg(long)]
    pub check: bool,
}

/// How long changes under way may take to finish at the end.
const CHANGES_TIMEOUT: Duration = Duration::from_secs(30);
/// Between tries of a reload for which no thread could be had: the first pause, doubled each time,
/// and the longest.
const RELOAD_AGAIN_MIN: Duration = Duration::from_secs(1);
const RELOAD_AGAIN_MAX: Duration = Duration::from_secs(30);

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "vswitchd: {}", crate::one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    let config = match &options.config {
        Some(path) => Some(Config::read(path)?),
        None if Path::new(DEFAULT_CONFIG).exists() => Some(Config::read(Path::new(DEFAULT_CONFIG))?),
        None => None,
    };
    let from_file = config.as_ref().map(|config| config.daemon.clone()).unwrap_or_default();
    let settings = options.daemon.or(from_file);
    let filter = crate::log::filter(settings.log.as_deref().unwrap_or("info"))?;
    check_cpus(settings.cpus.as_ref())?;
    if options.check {
        return check(config.as_ref(), &settings);
    }
    let log = crate::log::start(filter);
    let outcome = run_with_log(config.as_ref(), settings, &log);
    log.flush();
    outcome
}

fn run_with_log(config: Option<&Config>, mut settings: DaemonSection, log: &Log) -> Result<(), String> {
    tell_missing_capabilities();
    raise_file_limit();
    let sockets = Sockets::open(&settings)?;
    if sockets.attach.is_none() {
        settings.attach_socket = Some("none".into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the control thread: {error}"))?;
    // Before anything is created, so that a signal from now on ends in removing it again.
    let signals = {
        let _in_runtime = runtime.enter();
        Signals::catch().map_err(|error| format!("cannot catch signals: {error}"))?
    };
    let switch = Switch::start(&settings.options()).map_err(|error| error.to_string())?;
    let daemon = Daemon::new(Arc::new(switch), &settings);
    if let Some(config) = config {
        match daemon.configure(config, settings.strict.unwrap_or_default()) {
            Ok(report) => log_report("configured", &report),
            Err(error) => {
                daemon.stop();
                return Err(error.to_string());
            }
        }
    }
    if let Some(socket) = settings.attach_socket() {
        match attach::device::left(&socket) {
            Ok(left) => daemon.take_over(left, &attach::device::remove),
            Err(error) => tracing::warn!("cannot look for guests that run: {error}"),
        }
    }
    serve(runtime, Arc::new(daemon), sockets, signals, &settings, log)
}

fn check(config: Option<&Config>, settings: &DaemonSection) -> Result<(), String> {
    let Some(config) = config else {
        return Err(format!("there is no configuration to check: no --config, and no {DEFAULT_CONFIG}"));
    };
    let layout = &config.layout;
    let workers = settings.options().workers.unwrap_or_else(vswitch::sys::thread::available_cpus);
    for port in &layout.ports {
        if let PortKind::Tap(TapSpec { queues: Some(queues), .. })
        | PortKind::Macvtap(MacvtapSpec { queues: Some(queues), .. }) = port.kind
            && usize::from(queues) > workers
        {
            let place = config.place_of(&format!("port '{}'", port.name));
            return Err(format!(
                "{place}port '{}': {queues} queues; there are {workers} workers, and a port has at most one queue a worker",
                port.name
            ));
        }
    }
    let summary = format!(
        "{}: good: bridges: {}, ports: {}, static stations: {}",
        config.path.display(),
        layout.bridges.len(),
        layout.ports.len(),
        layout.entries.len()
    );
    writeln!(std::io::stdout(), "{summary}").map_err(|error| format!("cannot write: {error}"))
}

/// The signals that the daemon minds.
struct Signals {
    end: End,
    hangup: Signal,
}

/// Those that end it.
struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Signals> {
        Ok(Signals {
            end: End {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl End {
    /// Ready when the daemon shall end.
    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {},
            _ = self.interrupt.recv() => {},
        }
        tracing::info!("ending");
        notify(&[NotifyState::Stopping]);
    }
}

/// Reloads at every SIGHUP. One that failed for want of a thread is tried again until it does not,
/// because nobody waits for an answer who could ask again.
async fn reload_at(mut hangup: Signal, calls: Calls) {
    let mut again = None;
    loop {
        let wait = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = hangup.recv() => again = None,
            () = wait => {}
        }
        // The outcome is in the log.
        let passes = match calls.run(reload).await {
            Ok(outcome) => outcome.is_err_and(|error| error.lacks_thread()),
            Err(failed) => {
                tracing::error!("reload failed, everything stays as it was: {failed}");
                failed == Failed::Busy
            }
        };
        again = passes.then(|| again.map_or(RELOAD_AGAIN_MIN, |pause| (pause * 2).min(RELOAD_AGAIN_MAX)));
        if let Some(pause) = again {
            tracing::warn!("reload is tried again in {} s", pause.as_secs());
        }
    }
}

/// Where clients come in. The attach socket goes first, because both may be in a folder that the control socket's made.
struct Sockets {
    attach: Option<DaemonSocket>,
    control: DaemonSocket,
}

impl Sockets {
    fn open(settings: &DaemonSection) -> Result<Sockets, String> {
        let control = DaemonSocket::open(settings.socket(), CONTROL_MODE, "--socket")?;
        let attach = settings
            .attach_socket()
            .map(|path| DaemonSocket::open(&path, attach::SOCKET_MODE, "--attach-socket"));
        let attach = match attach {
            // Nobody asked for it: a second daemon beside this one does without.
            Some(Err(error)) if settings.attach_socket.is_none() => {
                tracing::warn!("guests cannot attach themselves: {error}");
                None
            }
            other => other.transpose()?,
        };
        Ok(Sockets { attach, control })
    }
}

fn serve(
    runtime: tokio::runtime::Runtime,
    daemon: Arc<Daemon>,
    mut sockets: Sockets,
    signals: Signals,
    settings: &DaemonSection,
    log: &Log,
) -> Result<(), String> {
    let (calls, threads) = match Threads::start(&daemon) {
        Ok(started) => started,
        Err(error) => {
            if let Ok(daemon) = Arc::try_unwrap(daemon) {
                daemon.stop();
            }
            return Err(format!("cannot start the threads that serve requests: {error}"));
        }
    };
    let router = server::router(calls.clone());
    let served = runtime.block_on(async {
        let listener = tokio::net::UnixListener::from_std(sockets.control.take_listener()?)?;
        if let Some(socket) = &mut sockets.attach {
            let listener = tokio::net::UnixListener::from_std(socket.take_listener()?)?;
            tokio::spawn(attach::server::serve(listener, Arc::clone(&daemon), calls.clone()));
        }
        tokio::spawn(log.clone().tell());
        tokio::spawn(reload_at(signals.hangup, calls));
        notify(&[NotifyState::Ready, NotifyState::Status(&standing(&daemon))]);
        tracing::info!(socket = %settings.socket().display(), "ready");
        server::serve(listener, router, signals.end.wait()).await;
        Ok(())
    });
    // Connections end with it; they hold the daemon, and so do changes under way.
    drop(runtime);
    let ended = threads.end(CHANGES_TIMEOUT);
    match Arc::try_unwrap(daemon) {
        Ok(daemon) if ended => daemon.stop(),
        _ => return Err("a change did not finish; what it created may be left".to_owned()),
    }
    drop(sockets);
    served.map_err(|error: std::io::Error| format!("cannot serve the control socket: {error}"))
}

/// Reloads the configuration; says so in the log and to systemd.
///
/// # Errors
/// As [`Daemon::reload`].
pub fn reload(daemon: &Daemon) -> Result<ReloadReport, Error> {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
    let result = daemon.reload();
    match &result {
        Ok(report) => log_report("reloaded", report),
        Err(error) => tracing::error!("reload refused, everything stays as it was: {error}"),
    }
    notify(&[NotifyState::Ready, NotifyState::Status(&standing(daemon))]);
    result
}

/// How the ports stand after a start or a reload, in a line for the service manager.
fn standing(daemon: &Daemon) -> String {
    let status = daemon.status();
    match status.failed_ports.as_slice() {
        [] => "switching".to_owned(),
        failed => {
            format!("switching; {} of {} ports failed, see 'vswitchctl status'", failed.len(), status.ports)
        }
    }
}

fn log_report(what: &str, report: &ReloadReport) {
    let count = |objects: &[String]| objects.len();
    tracing::info!(
        added = count(&report.added),
        changed = count(&report.changed),
        removed = count(&report.removed),
        "{what}"
    );
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
}

/// Tells systemd, if it started us.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

/// Refuses CPUs that we may not run on, by number; pinning would only say that an argument is invalid.
fn check_cpus(asked: Option<&CpuList>) -> Result<(), String> {
    let Some(CpuList(asked)) = asked else { return Ok(()) };
    let ours = sched_getaffinity(Pid::from_raw(0))
        .map_err(|error| format!("cannot tell which CPUs there are: {error}"))?;
    match asked.iter().find(|&&cpu| !ours.is_set(cpu).unwrap_or(false)) {
        None => Ok(()),
        Some(cpu) => {
            let usable: Vec<String> = (0..CpuSet::count())
                .filter(|&cpu| ours.is_set(cpu).unwrap_or(false))
                .map(|cpu| cpu.to_string())
                .collect();
            Err(format!("cannot pin workers to CPU {cpu}: choose of {}", usable.join(",")))
        }
    }
}

/// Ports need a file descriptor a queue and worker: take what we may.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Capabilities without which only ports on sockets of other programs work: bit in `CapEff` (`capabilities(7)`), name, what for.
const NEEDED: [(u32, &str, &str); 2] =
    [(12, "CAP_NET_ADMIN", "to create interfaces"), (13, "CAP_NET_RAW", "to receive and send frames")];

fn tell_missing_capabilities() {
    let missing = missing_capabilities(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    if !missing.is_empty() {
        tracing::warn!(
            "missing {}: only stream, dgram and vde ports will work; for all of them start vswitchd as root, by its systemd unit, or in \
             a user and network namespace ('unshare -rn')",
            missing.join(" and ")
        );
    }
}

/// What of [`NEEDED`] a process with this `/proc/self/status` lacks.
fn missing_capabilities(status: &str) -> Vec<String> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    let lacks = NEEDED.iter().filter(|(bit, ..)| effective >> bit & 1 == 0);
    lacks.map(|(_, name, what_for)| format!("{name} ({what_for})")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let status = |bits: &str| {
            format!("Name:\tvswitchd\nCapPrm:\t0000000000000000\nCapEff:\t{bits}\nSeccomp:\t0\n")
        };
        assert!(missing_capabilities(&status("000001ffffffffff")).is_empty());
        assert!(missing_capabilities(&status("0000000000003000")).is_empty());
        assert_eq!(
            missing_capabilities(&status("0000000000001000")),
            ["CAP_NET_RAW (to receive and send frames)"]
        );
        assert_eq!(missing_capabilities(&status("0000000000000000")).len(), 2);
    }

    #[test]
    fn cpus_that_are_not_there_are_named() {
        assert!(check_cpus(None).is_ok());
        let error = check_cpus(Some(&CpuList(vec![1023]))).unwrap_err();
        assert!(error.contains("CPU 1023: choose of "), "{error}");
    }

    #[test]
    fn options_win_over_the_file() {
        let options = Options::try_parse_from(["vswitchd", "--workers", "2", "--cpus", "0,2-3"]).unwrap();
        let file =
            DaemonSection { log: Some("debug".into()), workers: "1".parse().ok(), ..Default::default() };
        let settings = options.daemon.or(file);
        assert_eq!(settings.log.as_deref(), Some("debug"));
        assert_eq!(settings.options().workers, Some(2));
        assert_eq!(settings.options().cpus, [0, 2, 3]);
        for wrong in [["--workers", "0"], ["--cpus", "3-1"], ["--cpus", "1,1"], ["--poll", "never"]] {
            assert!(Options::try_parse_from(["vswitchd"].iter().chain(&wrong)).is_err(), "{wrong:?}");
        }
    }
}
