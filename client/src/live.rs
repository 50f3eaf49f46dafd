//! `client live`: a page that shows the rows of a run with their answers as they arrive, and has a form to ask about a
//! row of one's own.
//!
//! The server is a device like any other, with a certificate of its own, and forwards between MQTT and HTTP: the
//! browser has no certificate and speaks no MQTT. Pages get changes as server-sent events, and send small POSTs.
//!
//! * [`asking`]: the connection, and the requests of the pages.
//! * [`rows`]: the model that answers, and the rows of the run.
//! * [`pace`]: the run at its rate, the status, and which model answers.
//! * [`outcome`]: how a request ended, as a page gets it.
//! * [`regions`]: the model's predictions over a plane of two features.
//! * [`events`]: the stream to one page, which samples when there is more than a page can draw.
//! * [`guard`]: who has access.

mod asking;
mod events;
mod guard;
mod outcome;
mod pace;
mod regions;
mod rows;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use clap::Args;
use clap::builder::FalseyValueParser;
use client::{Client, Device, Settings};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::limits::Limits;
use crate::predict::positive;
use asking::Asking;
use guard::{Caller, Guard, Refusal};
use rows::Run;

/// Options of `live`.
#[derive(Args)]
pub struct Live {
    /// Requests a second, over and over through the rows while a page is open
    #[arg(long, env = "RATE", default_value = "5", value_parser = positive)]
    rate: f64,
    /// Port of the page; 0 for any that is free
    #[arg(
        long,
        env = "LIVE_PORT",
        value_name = "LIVE_PORT",
        default_value_t = 8890
    )]
    port: u16,
    /// Give access to everybody who has the second address that is printed. Unencrypted, as HTTP is
    #[arg(long, env = "ROOM", value_parser = FalseyValueParser::new())]
    open_to_room: bool,
    /// Only print the address
    #[arg(long, env = "NO_BROWSER", value_parser = FalseyValueParser::new())]
    no_browser: bool,
    /// The rows of the run, with their labels where known; random rows where it does not fit the model
    #[arg(long, default_value = "data/iris.csv", value_name = "FILE")]
    csv: PathBuf,
    /// The device that sends the requests
    #[arg(long, default_value = "live")]
    device: String,
    #[command(flatten)]
    limits: Limits,
}

/// The longest body that is accepted: 256 features with the longest names fit.
const MAX_BODY: usize = 64 * 1024;
/// Timeout for the pages to close their connections at the end.
const GOODBYE: Duration = Duration::from_secs(2);

impl Live {
    /// Connect, serve the page, and go on until Ctrl-C.
    pub async fn run(self, dir: &Path) -> Result<ExitCode> {
        let device = Device::open(&dir.join(&self.device))?;
        let host = if self.open_to_room {
            Ipv4Addr::UNSPECIFIED
        } else {
            Ipv4Addr::LOCALHOST
        };
        let listener = TcpListener::bind((host, self.port))
            .await
            .with_context(|| {
                format!(
                    "cannot listen on port {}: LIVE_PORT=0 takes any that is free",
                    self.port
                )
            })?;
        let port = listener.local_addr()?.port();
        let guard = Guard::new(port, self.open_to_room)?;
        let settings = Settings {
            max_pending: asking::MAX_PENDING,
            ..self.limits.settings(self.rate, 1)?
        };
        let client = Client::connect(&device, settings).await?;
        let run = Run::new(client.describe().await?, &self.csv, 0);
        let run_text = run.line();
        let asking = Arc::new(Asking::new(client, self.csv, run, self.rate));
        asking.find_axes().await;

        let mut tasks = JoinSet::new();
        tasks.spawn(pace::run(Arc::clone(&asking)));
        tasks.spawn(pace::report(Arc::clone(&asking)));
        tasks.spawn(pace::keep(Arc::clone(&asking)));
        tasks.spawn(pace::notice(Arc::clone(&asking), dir.join(&self.device)));

        let (here, text) = addresses(&guard, port);
        let door = Door(dir.join(&self.device).join("open.html"));
        let app = router(Arc::clone(&asking), guard);
        let mut ending = asking.over.subscribe();
        let mut served = std::pin::pin!(async {
            println!("{text}\n{run_text}");
            // A machine without a browser has the address on its terminal.
            if !self.no_browser && door.lead_to(&here).is_ok() {
                let _ = open::that_detached(&door.0);
            }
            axum::serve(listener, app)
                .with_graceful_shutdown(async move {
                    let _ = ending.wait_for(|over| *over).await;
                })
                .await
        });
        tokio::select! {
            // First, so that Ctrl-C is handled before anybody knows the page's address.
            biased;
            stop = tokio::signal::ctrl_c() => stop.context("cannot wait for Ctrl-C")?,
            ended = &mut served => ended.context("the web server ended")?,
        }
        asking.over.send_replace(true);
        let _ = timeout(GOODBYE, served).await;
        tasks.shutdown().await;
        let _ = timeout(GOODBYE, alone(&asking)).await;
        if let Some(asking) = Arc::into_inner(asking) {
            asking.close().await;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A file that redirects the browser to the page. Every user of this machine can see the command that opens a browser;
/// only its owner can read this file, which has the token.
struct Door(PathBuf);

impl Door {
    fn lead_to(&self, address: &str) -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        // The file of a server that was killed.
        fs::remove_file(&self.0).ok();
        let mut file = options.open(&self.0)?;
        writeln!(
            file,
            "<!doctype html><title>Live</title><meta http-equiv=\"refresh\" content=\"0; url={address}\">"
        )
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

/// Wait until nobody else holds it: the connection of a page may be about to end.
async fn alone(asking: &Arc<Asking>) {
    while Arc::strong_count(asking) > 1 {
        sleep(Duration::from_millis(5)).await;
    }
}

/// The address for this machine's browser, and the lines to print.
fn addresses(guard: &Guard, port: u16) -> (String, String) {
    let address =
        |host: IpAddr, query: String| format!("http://{}/{query}", SocketAddr::new(host, port));
    let here = address(Ipv4Addr::LOCALHOST.into(), guard.owners_query());
    let mut text = format!("live page  {here}\n");
    if let Some(query) = guard.rooms_query() {
        let room = own_address().map_or("this machine is on no network".into(), |host| {
            address(host, query)
        });
        text += &format!("the room   {room}\n");
        text += "           whoever has that address may ask; it is not encrypted\n";
    }
    (here, text + "Ctrl-C ends it.")
}

/// The address that this machine has in its network. Connecting a UDP socket only looks up the route:
/// nothing is sent (and the address belongs to nobody: RFC 5737).
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn router(asking: Arc<Asking>, guard: Guard) -> Router {
    let file = |content_type: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, content_type)], text) })
    };
    Router::new()
        .route(
            "/",
            file("text/html; charset=utf-8", include_str!("live/page.html")),
        )
        .route(
            "/page.css",
            file("text/css; charset=utf-8", include_str!("live/page.css")),
        )
        .route(
            "/page.js",
            file(
                "text/javascript; charset=utf-8",
                include_str!("live/page.js"),
            ),
        )
        .route(
            "/icon.svg",
            file("image/svg+xml", include_str!("live/icon.svg")),
        )
        .route("/events", get(watch))
        .route("/ask", post(ask))
        .route("/regions", post(regions))
        .route("/run", post(start_or_pause))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(asking)
        .layer(axum::middleware::from_fn_with_state(
            Arc::new(guard),
            guard::admit,
        ))
}

/// A page subscribes to the events.
async fn watch(
    State(asking): State<Arc<Asking>>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Refusal> {
    Ok(events::stream(asking, caller == Caller::Owner)?.into_response())
}

/// A page asks about a row.
async fn ask(State(asking): State<Arc<Asking>>, body: Bytes) -> Result<Response, Refusal> {
    let json = asking.ask_for_page(&read(&body)?).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// The plane that a page shows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plane {
    axes: [String; 2],
    row: BTreeMap<String, f64>,
}

/// The model's predictions over that plane.
async fn regions(State(asking): State<Arc<Asking>>, body: Bytes) -> Result<Response, Refusal> {
    let Plane { axes, row } = read(&body)?;
    let grid = regions::grid(&asking, &axes, &row).await?;
    Ok((
        [(header::CONTENT_TYPE, "application/json")],
        grid.to_string(),
    )
        .into_response())
}

/// What the button of the run sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    on: bool,
}

/// Start or pause the run, for everybody: only the owner may do that.
async fn start_or_pause(
    State(asking): State<Arc<Asking>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<(), Refusal> {
    let Turn { on } = read(&body)?;
    if caller != Caller::Owner {
        return Err(Refusal::NotTheOwner);
    }
    asking.on.send_replace(on);
    Ok(())
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(Refusal::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_numbers_by_name_and_nothing_else() {
        let row: BTreeMap<String, f64> = read(br#"{"weight": 5.1, "width": 0}"#).unwrap();
        assert_eq!(row["weight"], 5.1);
        for bad in [
            &b""[..],
            b"\xff",
            b"[]",
            br#"{"weight": "5.1"}"#,
            br#"{"weight": 1e999}"#,
        ] {
            let read = read::<BTreeMap<String, f64>>(bad);
            assert!(
                matches!(read, Err(Refusal::Malformed(_))),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
    }

    /// The page may load nothing from elsewhere, and its policy blocks inline scripts and styles.
    #[test]
    fn the_page_needs_nothing_but_itself() {
        let page = include_str!("live/page.html");
        for elsewhere in [
            "http:", "https:", "src=\"//", "style=", "onclick=", "<style",
        ] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains(r#"<script type="module" src="page.js"></script>"#));
    }
}
