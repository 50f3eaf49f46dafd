//! The connection, and the questions that go over it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, Outgoing, Packet, QoS,
    SubscribeReasonCode,
};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use crate::device::Device;
use crate::error::{AskError, ConnectError, DescribeError};
use crate::pace::{Reconnect, RetryTimer};
use crate::questions::{Counters, Questions, Reply};
use iris_fn::Description;
use iris_fn::request::{MAX_PAYLOAD, MAX_REQUEST_ID};

/// Room for the topic and the fixed header around a payload.
const MAX_PACKET: usize = MAX_PAYLOAD + 1024;
/// The longest silence after something was sent; then the connection is dead, whatever TCP believes.
const SILENCE: Duration = Duration::from_secs(3);
/// Seconds to make a connection.
const CONNECT_SECONDS: u64 = 3;

/// What a [`Client`] may be told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a question stays open, from when there is room for it to its reply. 15 s.
    pub deadline: Duration,
    /// How many questions may be open; the next one waits. 16: a burst had better wait here, where a
    /// place is free as soon as an answer comes, than in the cloud, where it would be asked again
    /// meanwhile. At most 100, which is how many unacknowledged messages AWS IoT takes from one client
    /// (<https://docs.aws.amazon.com/general/latest/gr/iot-core.html#message-broker-limits>).
    pub open: u16,
    /// How long the first connection is tried. 10 s.
    pub connect: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(15),
            open: 16,
            connect: Duration::from_secs(10),
        }
    }
}

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not there, or there and not subscribed yet.
    Down {
        /// What happened last.
        reason: String,
        /// The broker will not have us: it makes no sense to wait.
        refused: bool,
    },
    /// Connected, and the broker has our subscription.
    Up {
        /// The number of this connection, from 1.
        connection: u64,
    },
    /// Closed by us, for good.
    Closed,
}

/// A device's connection. It comes back by itself; dropping it, or [`Client::close`], ends it.
pub struct Client {
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

struct Shared {
    topic: String,
    settings: Settings,
    mqtt: AsyncClient,
    permits: Semaphore,
    link: watch::Sender<Link>,
    /// Std mutexes, because neither is held across an await.
    questions: Mutex<Questions>,
    timer: Mutex<RetryTimer>,
}

impl Client {
    /// Connect, subscribe to the device's answers, and wait until the broker has said that it will
    /// deliver them: an answer that came earlier would have nowhere to go.
    ///
    /// # Errors
    /// [`ConnectError`] when the broker refuses, or no connection stands within [`Settings::connect`].
    pub async fn connect(device: &Device, settings: Settings) -> Result<Self, ConnectError> {
        let mut options = device.options();
        options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
        options.set_inflight(settings.open);
        options.set_keep_alive(Duration::from_secs(30));
        // As many as are open, and the subscription.
        let (mqtt, mut events) = AsyncClient::new(options, usize::from(settings.open) + 1);
        events.network_options.set_tcp_nodelay(true); // send small messages at once
        events
            .network_options
            .set_connection_timeout(CONNECT_SECONDS);

        let patience = settings.connect;
        let (link, mut changes) = watch::channel(Link::Down {
            reason: "not tried yet".into(),
            refused: false,
        });
        let shared = Arc::new(Shared {
            topic: device.request_topic(),
            permits: Semaphore::new(settings.open.into()),
            settings,
            mqtt,
            link,
            questions: Mutex::default(),
            timer: Mutex::default(),
        });
        let listener = tokio::spawn(listen(events, device.response_topic(), Arc::clone(&shared)));
        // From here on an early return ends the listener too.
        let client = Self { shared, listener };
        let settled = |link: &Link| !matches!(link, Link::Down { refused: false, .. });
        let _ = timeout(patience, changes.wait_for(settled)).await;
        let (address, client_id) = (device.address(), device.client_id().to_owned());
        match changes.borrow().clone() {
            Link::Up { .. } => Ok(client),
            Link::Down {
                reason,
                refused: true,
            } => Err(ConnectError::Refused {
                address,
                client_id,
                reason,
            }),
            Link::Down {
                reason,
                refused: false,
            } => Err(ConnectError::Unreachable {
                address,
                client_id,
                waited: patience,
                reason,
            }),
            Link::Closed => unreachable!("nobody else holds this client yet"),
        }
    }

    /// Ask, and wait for the reply. The question is a request of the function, with a `request_id` that
    /// no other question of this client has. Waits for room first while [`Settings::open`] are open.
    ///
    /// A question without a reply is asked again under the same id: after a while, and as soon as a lost
    /// connection is back. To stop waiting is to drop the future.
    ///
    /// # Errors
    /// [`AskError`], at the latest [`Settings::deadline`] after there was room.
    pub async fn ask(&self, request: &Value) -> Result<Reply, AskError> {
        let id = request["request_id"].as_str().unwrap_or_default();
        self.ask_text(id, request.to_string()).await
    }

    /// Ask in the very bytes of `request`, the JSON of a request whose `request_id` is `id`.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn ask_text(&self, id: &str, request: String) -> Result<Reply, AskError> {
        if id.is_empty() || id.len() > MAX_REQUEST_ID {
            return Err(AskError::NoRequestId);
        }
        if request.len() > MAX_PAYLOAD {
            return Err(AskError::TooLarge {
                bytes: request.len(),
            });
        }
        let shared = &*self.shared;
        let _permit = shared
            .permits
            .acquire()
            .await
            .map_err(|_| AskError::Closed)?;
        let mut reply = shared.questions().open(id)?;
        // Whatever happens from here on, the question is closed once.
        let _open = Open { shared, id };
        let asked = Instant::now();
        let mut attempts = 0;
        match timeout(
            shared.settings.deadline,
            shared.insist(request, &mut reply, &mut attempts),
        )
        .await
        {
            Ok(reply) => reply,
            Err(_) => {
                // From here on none can come; one that came in this very moment is not lost.
                shared.questions().give_up(id);
                reply.try_recv().map_err(|_| AskError::NoAnswer {
                    request_id: id.to_owned(),
                    waited: asked.elapsed(),
                    attempts,
                    connection: match &*shared.link.borrow() {
                        Link::Down { reason, .. } => Some(reason.clone()),
                        _ => None,
                    },
                })
            }
        }
    }

    /// Which model answers, and what it wants to know.
    ///
    /// # Errors
    /// [`DescribeError`]: no answer, a refusal, or an answer of another kind.
    pub async fn describe(&self) -> Result<Description, DescribeError> {
        let id = format!("describe-{:08x}", fastrand::u32(..));
        let reply = self.ask(&json!({"request_id": id, "describe": true})).await;
        self.shared.questions().forget(&reply);
        match reply? {
            Reply::Answer(answer) => {
                serde_json::from_value(answer).map_err(|e| DescribeError::Unreadable(e.to_string()))
            }
            Reply::Refusal(error) => {
                let message = error["message"].as_str().unwrap_or_default().to_owned();
                Err(DescribeError::Refused { message })
            }
        }
    }

    /// How it went so far.
    pub fn counters(&self) -> Counters {
        self.shared.questions().counters
    }

    /// How the connection is, now and whenever it changes.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }

    /// Say goodbye to the broker and end.
    pub async fn close(mut self) {
        self.shared.permits.close();
        self.shared.link.send_replace(Link::Closed);
        let _ = self.shared.mqtt.try_disconnect();
        // It ends with the goodbye; where there is no connection to say it on, the drop ends it.
        let _ = timeout(Duration::from_secs(1), &mut self.listener).await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// A question that is open while this lives.
struct Open<'a> {
    shared: &'a Shared,
    id: &'a str,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.questions().give_up(self.id);
    }
}

impl Shared {
    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    fn timer(&self) -> MutexGuard<'_, RetryTimer> {
        self.timer
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    /// Ask again and again until there is a reply.
    async fn insist(
        &self,
        request: String,
        reply: &mut oneshot::Receiver<Reply>,
        attempts: &mut u32,
    ) -> Result<Reply, AskError> {
        let mut link = self.link.subscribe();
        loop {
            // Nothing is sent before the broker has our subscription, or when the reply is there.
            let connection = tokio::select! {
                biased;
                reply = &mut *reply => return reply.map_err(|_| AskError::Closed),
                up = link.wait_for(|link| !matches!(link, Link::Down { .. })) => match up.as_deref() {
                    Ok(Link::Up { connection }) => *connection,
                    _ => return Err(AskError::Closed),
                },
            };
            let sent = self
                .mqtt
                .publish(&self.topic, QoS::AtLeastOnce, false, request.clone());
            sent.await.map_err(|_| AskError::Closed)?;
            *attempts += 1;
            if *attempts > 1 {
                self.questions().counters.retried += 1;
            }
            let asked = Instant::now();
            let wait = self.timer().wait(*attempts);
            tokio::select! {
                biased;
                reply = &mut *reply => {
                    if *attempts == 1 {
                        self.timer().learn(asked.elapsed());
                    }
                    return reply.map_err(|_| AskError::Closed);
                }
                _ = sleep(wait) => self.timer().expired(*attempts),
                // What was under way on a lost connection may be lost with it.
                _ = link.wait_for(|link| *link != Link::Up { connection }) => {}
            }
        }
    }
}

/// Keep the connection: nothing moves in rumqttc unless its event loop is polled. Subscribe on every
/// connection (a clean session forgets), hand on what arrives, and come back when it breaks.
async fn listen(mut events: EventLoop, answers: String, shared: Arc<Shared>) {
    let mut reconnect = Reconnect::new();
    let mut connections = 0;
    let mut connected: Option<Instant> = None;
    // Since when something is sent and nothing is heard.
    let mut silent_since: Option<tokio::time::Instant> = None;
    loop {
        let deadline = silent_since.map(|since| since + SILENCE);
        let silence = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = events.poll() => event
                .map_err(|e| (refusal(&e), e.to_string()))
                .and_then(|event| usable(event, &answers)),
            () = silence => Err((false, format!("nothing heard for {SILENCE:?}"))),
        };
        match event {
            Ok(Event::Incoming(packet)) => {
                silent_since = None;
                match packet {
                    Packet::ConnAck(_) => {
                        connections += 1;
                        connected = Some(Instant::now());
                        // It has room: a lost connection empties the channel, and nobody asks before SUBACK.
                        let _ = shared.mqtt.try_subscribe(&answers, QoS::AtLeastOnce);
                    }
                    Packet::SubAck(_) => {
                        shared.questions().counters.reconnected = connections - 1;
                        shared.change(Link::Up {
                            connection: connections,
                        });
                    }
                    Packet::Publish(message) => shared.questions().deliver(&message.payload),
                    _ => {}
                }
            }
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(Event::Outgoing(
                Outgoing::Publish(_) | Outgoing::Subscribe(_) | Outgoing::PingReq,
            )) => {
                silent_since.get_or_insert_with(tokio::time::Instant::now);
            }
            Ok(Event::Outgoing(_)) => {}
            Err((refused, reason)) => {
                silent_since = None;
                events.clean();
                // Nobody will acknowledge what it waits behind; its question is asked again.
                events.state.collision = None;
                if *shared.link.borrow() == Link::Closed {
                    return;
                }
                shared.down(reason, refused);
                let lasted = connected
                    .take()
                    .map_or(Duration::ZERO, |since| since.elapsed());
                sleep(reconnect.after(lasted)).await;
            }
        }
    }
}

impl Shared {
    fn down(&self, reason: String, refused: bool) {
        self.change(Link::Down { reason, refused });
    }

    /// Closed is for good.
    fn change(&self, new: Link) {
        self.link.send_if_modified(|link| {
            let changed = *link != Link::Closed && *link != new;
            if changed {
                *link = new;
            }
            changed
        });
    }
}

/// An event, unless it says that this connection is of no use; then, whether the broker has refused, and why.
fn usable(event: Event, answers: &str) -> Result<Event, (bool, String)> {
    match event {
        Event::Incoming(Packet::SubAck(granted))
            if granted.return_codes.contains(&SubscribeReasonCode::Failure) =>
        {
            let reason = format!("the broker refuses the subscription to {answers}");
            Err((true, reason))
        }
        // All other packet ids were used since, and this one is not free: rumqttc sends nothing until an
        // acknowledgement comes that is most likely lost (<https://github.com/bytebeamio/rumqtt/issues/1056>).
        Event::Outgoing(Outgoing::AwaitAck(_)) => {
            Err((false, "an acknowledgement is missing".to_owned()))
        }
        event => Ok(event),
    }
}

/// Whether the broker has said no, and will say so again.
fn refusal(error: &ConnectionError) -> bool {
    use ConnectReturnCode::{BadClientId, BadUserNamePassword, NotAuthorized};
    matches!(
        error,
        ConnectionError::ConnectionRefused(NotAuthorized | BadClientId | BadUserNamePassword)
    )
}
