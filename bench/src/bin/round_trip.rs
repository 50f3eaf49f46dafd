//! Asks one row after the other and prints how long each answer took, in microseconds, as JSON:
//! `round_trip client DEVICE_FOLDER COUNT` by our client, `round_trip bare …` by rumqttc alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::{Client, Description, Device, Settings};
use iris_fn::Model;
use rumqttc::{AsyncClient, Event, Packet, QoS};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// As the peers' bench wrote it.
const MODEL: &str = "target/bench/model.json";
/// The first answers meet a cold container, and find nothing in any cache.
const WARM_UP: usize = 50;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [by, folder, count] = &arguments[..] else {
        bail!("round_trip client|bare DEVICE_FOLDER COUNT");
    };
    let (folder, count) = (PathBuf::from(folder), count.parse::<usize>()? + WARM_UP);
    let times = match by.as_str() {
        "client" => by_client(&folder, count).await?,
        "bare" => by_rumqttc(&folder, count).await?,
        _ => bail!("{by} is neither client nor bare"),
    };
    let microseconds: Vec<u128> = times[WARM_UP..].iter().map(Duration::as_micros).collect();
    println!("{}", serde_json::to_string(&microseconds)?);
    Ok(())
}

async fn by_client(folder: &Path, count: usize) -> Result<Vec<Duration>> {
    // One after the other, as fast as they are answered: what the pace for AWS adds is not our code.
    let settings = Settings {
        pace: 1000.0,
        ..Settings::default()
    };
    let client = Client::connect(&Device::open(folder)?, settings).await?;
    let model = client.describe().await?;
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let asked = Instant::now();
        client
            .ask(&model.request(&n.to_string(), &model.middle()))
            .await?;
        times.push(asked.elapsed());
    }
    client.close().await;
    Ok(times)
}

async fn by_rumqttc(folder: &Path, count: usize) -> Result<Vec<Duration>> {
    // The function that sends back what it got describes nothing.
    let model = Description::of(&Model::from_bytes(&std::fs::read(MODEL)?)?);
    let device = Device::open(folder)?;
    let (mqtt, mut events) = AsyncClient::new(device.options(), 10);
    events.network_options.set_tcp_nodelay(true);
    let (to, mut inbox) = mpsc::channel(10);
    tokio::spawn(async move {
        while let Ok(event) = events.poll().await {
            if let Event::Incoming(packet @ (Packet::SubAck(_) | Packet::Publish(_))) = event {
                let _ = to.send(packet).await;
            }
        }
    });
    let mut next = async || {
        let packet = timeout(Duration::from_secs(15), inbox.recv()).await;
        packet
            .context("nothing came in 15 s")?
            .context("the connection was lost")
    };
    mqtt.subscribe(device.response_topic(), QoS::AtLeastOnce)
        .await?;
    next().await?;
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let asked = Instant::now();
        let request = model.request(&n.to_string(), &model.middle()).to_string();
        mqtt.publish(device.request_topic(), QoS::AtLeastOnce, false, request)
            .await?;
        next().await?;
        times.push(asked.elapsed());
    }
    mqtt.disconnect().await?;
    Ok(times)
}
