#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    isthmus_controller::main()
}
