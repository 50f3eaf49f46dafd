//! Asks for predictions from a terminal: about one row, a file of rows, or at a steady rate from many devices.
//! `make` calls it with the right settings.

mod latency;
mod limits;
mod live;
mod load;
mod predict;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};

/// Ask the deployed function for predictions, over MQTT
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Folder that `make device` writes the stack's devices into; `make` sets it to what `make device-dir` prints
    #[arg(
        long,
        env = "DEVICES_DIR",
        default_value = "target/devices",
        global = true
    )]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ask about one row, a CSV of them, or ready-made requests, and print each answer
    Predict(predict::Predict),
    /// Ask at a steady rate from many devices, and print how long the answers took
    Load(load::Load),
    /// Show a run in a browser, with a form to ask about a row of one's own
    Live(live::Live),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { dir, command } = Cli::try_parse().unwrap_or_else(|e| {
        if let Some(error) = in_settings(&e) {
            eprintln!("error: {error}");
            std::process::exit(2);
        }
        e.exit()
    });
    let done = match command {
        Command::Predict(predict) => predict.run(&dir).await,
        Command::Load(load) => load.run(&dir).await,
        Command::Live(live) => live.run(&dir).await,
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is wrong with a value, named after the setting of `make` that it came from.
fn in_settings(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(&**text),
        _ => None,
    };
    // `--rate <RATE>`, for example.
    let (_, name) = text(ContextKind::InvalidArg)?.split_once('<')?;
    let (name, value) = (name.split('>').next()?, text(ContextKind::InvalidValue)?);
    let why = std::error::Error::source(error)?;
    Some(format!("{name}={value:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
