//! See [`switchd::attach::helper`].

fn main() -> std::process::ExitCode {
    switchd::attach::helper::main()
}
