//! The command line. See [`switchd::ctl`].

fn main() -> std::process::ExitCode {
    switchd::ctl::main()
}
