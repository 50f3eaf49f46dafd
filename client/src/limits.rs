//! Options of all commands: the limits of a connection.

use std::sync::Once;

use anyhow::{Result, ensure};
use clap::Args;
use clap::builder::FalseyValueParser;
use client::pace::BROKER_LIMIT;
use client::{Client, Link, Settings};

use crate::predict::positive;

/// How fast a device sends requests, and to which topic.
#[derive(Args, Clone, Copy)]
pub struct Limits {
    /// Requests a second that one device may send. More than 40 is for the local cloud: AWS IoT discards what exceeds
    /// 100 messages a second on a connection, requests and answers together
    #[arg(long, env = "PACE", default_value = "40", value_parser = positive)]
    pub pace: f64,
    /// Send by Basic Ingest: one message less to pay for, and nobody else can subscribe to the requests
    #[arg(long, env = "BASIC_INGEST", value_parser = FalseyValueParser::new())]
    basic_ingest: bool,
}

impl Limits {
    /// A client's settings; refuses a rate that so many devices cannot send.
    pub fn settings(self, rate: f64, devices: u16) -> Result<Settings> {
        ensure!(
            rate <= self.pace * f64::from(devices),
            "{rate} requests a second are too many for {devices} device{}: AWS IoT discards what exceeds {BROKER_LIMIT} \
             messages a second on a connection, requests and answers together, so that one device sends {} at most; \
             `make load` with DEVICES={} sends that many, and PACE={rate} lifts this for a cloud without the limit",
            if devices == 1 { "" } else { "s" },
            self.pace,
            (rate / self.pace).ceil(),
        );
        Ok(Settings {
            pace: self.pace,
            basic_ingest: self.basic_ingest,
            ..Settings::default()
        })
    }
}

/// Report on standard error, once for all devices, that another client takes over the connection.
pub fn warn_of_another(client: &Client) {
    static REPORTED: Once = Once::new();
    let mut link = client.link();
    tokio::spawn(async move {
        let taken_over = |link: &Link| {
            matches!(
                link,
                Link::Down {
                    taken_over: true,
                    ..
                }
            )
        };
        if let Ok(down) = link.wait_for(taken_over).await
            && let Link::Down { reason, .. } = &*down
        {
            REPORTED.call_once(|| eprintln!("{reason}"));
        }
    });
}
