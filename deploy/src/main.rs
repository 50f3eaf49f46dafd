//! Puts the function and its infrastructure into the cloud: the laptop's own, or AWS.
//!
//! The infrastructure is `deploy/template.yaml`, applied through CloudFormation change sets
//! ([`stack`]). What a template cannot do is here: zip the code ([`package`]), test a version before
//! `live` moves to it and go back ([`release`], [`check`]), publish a model ([`models`]), make a device's
//! certificate ([`device`]), send failed requests again ([`dead_letters`]), do all of that for a whole class
//! ([`class`]), and delete everything ([`destroy`]). [`doctor`] checks beforehand whether a deploy would work.

mod check;
mod class;
mod cloud;
mod cost;
mod dead_letters;
mod destroy;
mod device;
mod doctor;
mod function;
mod iot;
mod models;
mod ours;
mod package;
mod policy;
mod release;
mod rest;
mod stack;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use cloud::{Cloud, StackName, Target};

/// Deploy the function and publish its models. `make` calls this with the right settings.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Prefix of every name: lower-case letters and digits, at most 20, a letter first
    #[arg(long, env = "STACK", default_value = "iris", global = true)]
    stack: StackName,
    /// Which cloud
    #[arg(long, env = "TARGET", default_value = "local", global = true)]
    target: Target,
    /// Answer yes to every prompt (needed without a terminal)
    #[arg(long, env = "YES", value_parser = clap::builder::FalseyValueParser::new(), global = true)]
    yes: bool,
    /// The class that the stack is made for
    #[arg(long, hide = true, global = true)]
    class: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the stack's first stage: the bucket
    Bucket,
    /// Check a model file as the function does, and make it the current model
    Publish {
        /// The model file
        file: PathBuf,
    },
    /// Zip a built `bootstrap` for Lambda; the same program always gives the same zip
    Package {
        /// The built program
        bootstrap: PathBuf,
        /// The zip to write
        zip: PathBuf,
    },
    /// Make or update the whole stack, test the new version, move `live` to it
    Up {
        /// The zip that `package` wrote
        zip: PathBuf,
        #[command(flatten)]
        settings: release::Settings,
    },
    /// Print what `up` would change, and change nothing; exit 2 when there is something
    Plan {
        /// The zip that `package` wrote
        zip: PathBuf,
        #[command(flatten)]
        settings: release::Settings,
    },
    /// Go back to the version or the model before
    Rollback {
        /// What to take back
        #[arg(long, env = "WHAT", default_value = "code")]
        what: release::What,
        /// A version's number or the first digits of a model's SHA-256, instead of the one before
        #[arg(long, env = "TO", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        to: Option<String>,
    },
    /// List the versions of the code and the models
    Versions,
    /// Make a device: a certificate of its own, allowed to send requests and to receive its own answers
    Device {
        /// Letters, digits, `-` and `_`
        name: device::DeviceName,
        /// As many devices: `<name>-1`, `<name>-2` …
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: Option<u16>,
        /// Folder that receives `<name>/{cert.pem,key.pem,ca.pem,endpoint.json}`, instead of the stack's own
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Port of MQTT over TLS
        #[arg(long, env = "IOT_MTLS_PORT", default_value_t = 8883)]
        port: u16,
        /// Also print the line that asks as this device with mosquitto
        #[arg(long, conflicts_with = "count")]
        mosquitto: bool,
    },
    /// Print the folder of a device, or of all
    DeviceDir {
        /// The device
        name: Option<device::DeviceName>,
    },
    /// Print what is deployed
    Status,
    /// Call `live` and print the answer
    Invoke {
        /// The request, JSON; without it, a row in the middle of the model's training data
        #[arg(env = "REQUEST", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        request: Option<String>,
    },
    /// Print the function's log
    Logs {
        /// How far back, in minutes
        #[arg(long, default_value_t = 60)]
        minutes: u32,
        /// Continue with new lines, until Ctrl-C
        #[arg(long, env = "FOLLOW", value_parser = clap::builder::FalseyValueParser::new())]
        follow: bool,
        /// Only the lines about this `request_id`
        #[arg(long)]
        request_id: Option<String>,
    },
    /// List the requests that failed
    Dlq,
    /// Send them again
    Redrive {
        /// Visibility timeout of the messages, in seconds
        #[arg(long, hide = true, default_value_t = dead_letters::OURS)]
        ours: u16,
    },
    /// Print the permissions that a person needs to deploy this stack, as an IAM policy
    Policy,
    /// Make the permissions boundary that this policy demands, once for an account
    Boundary,
    /// Check what can be checked without creating anything; exit 1 when a check fails
    Doctor,
    /// Print what the stack costs, idle and in use
    Cost {
        /// Price list
        #[arg(long, default_value = "data/prices.json")]
        prices: PathBuf,
    },
    /// Make a stack with a device for each member of a class, and an archive for each to hand out
    Class {
        #[command(flatten)]
        class: class::Members,
        /// The zip that `package` wrote
        zip: PathBuf,
    },
    /// Delete every stack of a class
    ClassDestroy {
        #[command(flatten)]
        class: class::Members,
    },
    /// Delete everything that has the stack's name
    Destroy {
        /// Folder that holds the devices' credentials, instead of the stack's own
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Port of MQTT over TLS
        #[arg(long, env = "IOT_MTLS_PORT", default_value_t = 8883)]
        port: u16,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The exit code of `plan` when there is something to do.
const SOMETHING_TO_DO: u8 = 2;

async fn run(cli: Cli) -> Result<ExitCode> {
    match &cli.command {
        // These need no cloud.
        Command::Package { bootstrap, zip } => package::package(bootstrap, zip)?,
        Command::Cost { prices } => cost::print(prices)?,
        Command::Doctor => {
            let healthy = doctor::examine(cli.target, cli.stack).await?;
            return Ok(if healthy {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        _ => return in_the_cloud(cli).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn in_the_cloud(cli: Cli) -> Result<ExitCode> {
    let mut cloud = Cloud::connect(cli.target, cli.stack, cli.yes).await?;
    cloud.class = cli.class;
    let devices = |dir: Option<PathBuf>| dir.unwrap_or_else(|| cloud.folder("devices"));
    match cli.command {
        Command::Package { .. } | Command::Cost { .. } | Command::Doctor => {
            unreachable!("they need no cloud")
        }
        Command::Bucket => stack::ensure_bucket(&cloud).await?,
        Command::Publish { file } => models::publish(&cloud, &file).await?,
        Command::Up { zip, settings } => release::deploy(&cloud, &zip, &settings).await?,
        Command::Plan { zip, settings } => {
            if release::plan(&cloud, &zip, &settings).await? {
                return Ok(ExitCode::from(SOMETHING_TO_DO));
            }
        }
        Command::Rollback { what, to } => release::rollback(&cloud, what, to.as_deref()).await?,
        Command::Versions => release::versions(&cloud).await?,
        Command::Device {
            name,
            count: None,
            dir,
            port,
            mosquitto,
        } => device::create(&cloud, &name, &devices(dir), port, mosquitto).await?,
        Command::Device {
            name,
            count: Some(count),
            dir,
            port,
            ..
        } => device::create_all(&cloud, &name.numbered(count)?, &devices(dir), port).await?,
        Command::DeviceDir { name } => {
            let folder = devices(None);
            let folder = name.map_or(folder.clone(), |name| name.folder(&folder));
            println!("{}", folder.display());
        }
        Command::Status => status::status(&cloud).await?,
        Command::Invoke { request } => function::invoke(&cloud, request.as_deref()).await?,
        Command::Logs {
            minutes,
            follow,
            request_id,
        } => status::logs(&cloud, minutes, follow, request_id.as_deref()).await?,
        Command::Dlq => dead_letters::list(&cloud).await?,
        Command::Redrive { ours } => dead_letters::redrive(&cloud, ours).await?,
        Command::Policy => policy::print(&cloud)?,
        Command::Boundary => policy::make_boundary(&cloud).await?,
        Command::Class { class, zip } => class::create(&cloud, &class, &zip).await?,
        Command::ClassDestroy { class } => class::destroy(&cloud, &class).await?,
        Command::Destroy { dir, port } => destroy::destroy(&cloud, &devices(dir), port).await?,
    }
    Ok(ExitCode::SUCCESS)
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
