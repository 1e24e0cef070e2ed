//! The daemon. See [`switchd::vswitchd`].

fn main() -> std::process::ExitCode {
    switchd::vswitchd::main()
}
