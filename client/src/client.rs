//! The connection, and the questions that go over it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, Outgoing, Packet, QoS,
    Request, Subscribe, SubscribeReasonCode,
};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use crate::device::Device;
use crate::error::{AskError, ConnectError, DescribeError};
use crate::pace::{Pace, QUESTIONS_A_SECOND, Reconnect, RetryTimer};
use crate::questions::{Counters, Questions, Reply};
use iris_fn::Description;
use iris_fn::request::{MAX_PAYLOAD, MAX_REQUEST_ID};

/// Room for the topic and the fixed header around a payload.
const MAX_PACKET: usize = MAX_PAYLOAD + 1024;
/// The longest silence after something was sent; then the connection is dead, whatever TCP believes.
const SILENCE: Duration = Duration::from_secs(3);
/// Seconds to make a connection.
const CONNECT_SECONDS: u64 = 3;
/// Packet ids, used in turn. Those of an acknowledgement that is late, or lost, are not needed again for seconds.
const PACKET_IDS: u16 = 256;
/// Unacknowledged messages that AWS IoT takes from a client
/// (<https://docs.aws.amazon.com/general/latest/gr/iot-core.html#message-broker-limits>).
const UNACKNOWLEDGED: u16 = 100;
/// A connection that was closed sooner may have been taken over.
const SHORT_LIVED: Duration = Duration::from_secs(5);
/// After so many of these in a row it is said.
const TAKEN_OVER: u32 = 3;

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
    /// Questions sent a second, those asked again too; the next one waits. 40: AWS IoT discards what exceeds 100
    /// messages a second on a connection, questions and answers together.
    pub pace: f64,
    /// Ask by [`Device::basic_ingest_topic`], which costs a message less. Off: nobody else can subscribe to see
    /// the questions, and a stack of an older template forbids it.
    pub basic_ingest: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(15),
            open: 16,
            connect: Duration::from_secs(10),
            pace: QUESTIONS_A_SECOND,
            basic_ingest: false,
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
        /// Most likely another client connects under the same id, again and again.
        taken_over: bool,
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
    pace: Mutex<Pace>,
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
        options.set_inflight(PACKET_IDS);
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
            taken_over: false,
        });
        let shared = Arc::new(Shared {
            topic: if settings.basic_ingest {
                device.basic_ingest_topic()
            } else {
                device.request_topic()
            },
            permits: Semaphore::new(settings.open.into()),
            pace: Mutex::new(Pace::new(settings.pace)),
            settings,
            mqtt,
            link,
            questions: Mutex::default(),
            timer: Mutex::default(),
        });
        let listener = tokio::spawn(listen(
            events,
            device.response_topic(),
            device.client_id().to_owned(),
            Arc::clone(&shared),
        ));
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
                ..
            } => Err(ConnectError::Refused {
                address,
                client_id,
                reason,
            }),
            Link::Down {
                reason,
                refused: false,
                ..
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

    /// When the next message may be sent.
    fn token(&self) -> tokio::time::Instant {
        let mut pace = self
            .pace
            .lock()
            .expect("nothing panics while it holds this lock");
        pace.take(Instant::now()).into()
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
            tokio::select! {
                biased;
                reply = &mut *reply => return reply.map_err(|_| AskError::Closed),
                () = sleep_until(self.token()) => {}
            }
            if *link.borrow_and_update() != (Link::Up { connection }) {
                continue;
            }
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
async fn listen(mut events: EventLoop, answers: String, client_id: String, shared: Arc<Shared>) {
    let mut reconnect = Reconnect::new();
    let mut link = shared.link.subscribe();
    // How many connections in a row were closed on us soon after they were made.
    let mut short_lived = 0;
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
                .map_err(|e| Lost { refused: refusal(&e), by_us: false, reason: e.to_string() })
                .and_then(|event| usable(event, &answers)),
            () = silence => Err(Lost::by_us(format!("nothing heard for {SILENCE:?}"))),
        };
        let event = match event {
            Ok(Event::Outgoing(Outgoing::Publish(_)))
                if events.state.inflight() >= UNACKNOWLEDGED =>
            {
                Err(Lost::by_us(format!(
                    "{UNACKNOWLEDGED} acknowledgements are missing"
                )))
            }
            event => event,
        };
        match event {
            Ok(Event::Incoming(packet)) => {
                silent_since = None;
                match packet {
                    Packet::ConnAck(_) => {
                        connections += 1;
                        connected = Some(Instant::now());
                        // Before all that may wait in the channel, and never for want of room in it. At QoS 0: the
                        // question of an answer that is lost is asked again, and AWS charges for a device's PUBACK.
                        let subscribe = Subscribe::new(&answers, QoS::AtMostOnce);
                        events.pending.push_front(Request::Subscribe(subscribe));
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
            Err(mut lost) => {
                silent_since = None;
                events.clean();
                // Nobody will acknowledge what it waits behind; its question is asked again.
                events.state.collision = None;
                // What was read and not handled yet: a SUBACK among it would be taken for the next connection's.
                for event in events.state.events.drain(..) {
                    if let Event::Incoming(Packet::Publish(message)) = event {
                        shared.questions().deliver(&message.payload);
                    }
                }
                if *shared.link.borrow() == Link::Closed {
                    return;
                }
                let lasted = connected.take().map(|since| since.elapsed());
                match lasted {
                    Some(lasted) if lasted >= SHORT_LIVED => short_lived = 0,
                    Some(_) if !lost.refused && !lost.by_us => short_lived += 1,
                    _ => {}
                }
                let taken_over = short_lived >= TAKEN_OVER && !lost.refused;
                if taken_over {
                    lost.reason = format!(
                        "another client connects as {client_id}, it seems: the broker closed {short_lived} \
                         connections within {SHORT_LIVED:?}; stop one of the two, or give it a device of its own \
                         (`make device NAME=…`)"
                    );
                }
                shared.down(lost.reason, lost.refused, taken_over);
                let wait = reconnect.after(lasted.unwrap_or_default());
                if timeout(wait, link.wait_for(|link| *link == Link::Closed))
                    .await
                    .is_ok()
                {
                    return;
                }
                // By now nobody sends, and what still came in between is asked again.
                events.clean();
            }
        }
    }
}

impl Shared {
    fn down(&self, reason: String, refused: bool, taken_over: bool) {
        self.change(Link::Down {
            reason,
            refused,
            taken_over,
        });
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

/// Why a connection is of no use.
struct Lost {
    /// The broker will not have us.
    refused: bool,
    /// We give it up, and the broker did not close it.
    by_us: bool,
    reason: String,
}

impl Lost {
    fn by_us(reason: String) -> Self {
        Self {
            refused: false,
            by_us: true,
            reason,
        }
    }
}

/// An event, unless it says that this connection is of no use.
fn usable(event: Event, answers: &str) -> Result<Event, Lost> {
    match event {
        Event::Incoming(Packet::SubAck(granted))
            if granted.return_codes.contains(&SubscribeReasonCode::Failure) =>
        {
            Err(Lost {
                refused: true,
                by_us: false,
                reason: format!("the broker refuses the subscription to {answers}"),
            })
        }
        // All other packet ids were used since, and this one is not free: rumqttc sends nothing until an
        // acknowledgement comes that is most likely lost (<https://github.com/bytebeamio/rumqtt/issues/1056>).
        Event::Outgoing(Outgoing::AwaitAck(_)) => {
            Err(Lost::by_us("an acknowledgement is missing".to_owned()))
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
