//! Puts the Iris function and its infrastructure into the cloud: the laptop's own, or AWS.
//!
//! The infrastructure is `deploy/template.yaml`, applied through CloudFormation change sets
//! ([`stack`]). What a template cannot do is here: zip the code ([`package`]), test a version before
//! `live` moves to it ([`function`]), make a device's certificate ([`device`]), and take everything
//! away again ([`destroy`]).

mod cloud;
mod destroy;
mod device;
mod function;
mod package;
mod stack;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use cloud::{Architecture, Cloud, StackName, Target};

/// Deploy the Iris workshop. `make` calls this with the right settings.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Prefix of every name: lower-case letters and digits, at most 20, a letter first
    #[arg(long, env = "STACK", default_value = "iris", global = true)]
    stack: StackName,
    /// Which cloud
    #[arg(long, env = "TARGET", default_value = "local", global = true)]
    target: Target,
    /// Answer yes to every question (needed where nobody can be asked)
    #[arg(long, env = "YES", value_parser = clap::builder::FalseyValueParser::new(), global = true)]
    yes: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the stack's first stage: the bucket
    Bucket,
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
        /// Processor that the code was built for
        #[arg(long, env = "ARCH", default_value = "host")]
        arch: Architecture,
    },
    /// Make a device: a certificate of its own, allowed to ask and to hear its own answers
    Device {
        /// Letters, digits, `-` and `_`
        name: device::DeviceName,
        /// Folder that receives `<name>/{cert.pem,key.pem,ca.pem,endpoint.json}`
        #[arg(long, default_value = "target/devices")]
        dir: PathBuf,
        /// Port of MQTT over TLS
        #[arg(long, env = "IOT_MTLS_PORT", default_value_t = 8883)]
        port: u16,
    },
    /// Say what is deployed
    Status,
    /// Call `live` and print the answer
    Invoke {
        /// The request, JSON
        #[arg(env = "REQUEST", default_value = function::SAMPLE_REQUEST)]
        request: String,
    },
    /// Print the function's log
    Logs {
        /// How far back, in minutes
        #[arg(long, default_value_t = 60)]
        minutes: u32,
    },
    /// Delete everything that carries the stack's name
    Destroy {
        /// Folder that holds the devices' credentials
        #[arg(long, default_value = "target/devices")]
        dir: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    if let Command::Package { bootstrap, zip } = &cli.command {
        return package::package(bootstrap, zip);
    }
    let cloud = Cloud::connect(cli.target, cli.stack, cli.yes).await?;
    match cli.command {
        Command::Package { .. } => unreachable!("handled above, it needs no cloud"),
        Command::Bucket => stack::ensure_bucket(&cloud).await,
        Command::Up { zip, arch } => function::deploy(&cloud, &zip, arch).await,
        Command::Device { name, dir, port } => device::create(&cloud, &name, &dir, port).await,
        Command::Status => status::status(&cloud).await,
        Command::Invoke { request } => function::invoke(&cloud, &request).await,
        Command::Logs { minutes } => status::logs(&cloud, minutes).await,
        Command::Destroy { dir } => destroy::destroy(&cloud, &dir).await,
    }
}
