//! The program `vitesse`: parse → plan → run → report. Each verb is one file in `cli/`.

mod cli;

use std::process::ExitCode;

use cli::Console;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(error) => return cli::refuse(error).into(),
    };
    let json = cli.json;
    match Console::start() {
        Ok(console) => {
            let outcome = cli.run(&console);
            console.end(outcome, json).into()
        }
        Err(failure) => failure.print(json).into(),
    }
}
