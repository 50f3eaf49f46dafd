//! The connection, and the requests that go over it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, Outgoing, Packet, QoS,
    Request as MqttRequest, Subscribe, SubscribeReasonCode,
};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use crate::device::Device;
use crate::error::{AskError, ConnectError, DescribeError};
use crate::pace::{Pace, REQUESTS_A_SECOND, Reconnect, RetryTimer};
use crate::pending::{Counters, Pending, Reply};
use iris_fn::Description;
use iris_fn::request::{MAX_PAYLOAD, MAX_REQUEST_ID};

/// Room for the topic and the fixed header around a payload.
const MAX_PACKET: usize = MAX_PAYLOAD + 1024;
/// How long after a send the broker may be silent. Then the connection counts as dead, even if TCP still holds it.
const SILENCE: Duration = Duration::from_secs(3);
/// Timeout of a connection attempt, in seconds.
const CONNECT_SECONDS: u64 = 3;
/// Packet ids, used in turn. With this many, the id of a late or lost acknowledgement is not needed again for seconds.
const PACKET_IDS: u16 = 256;
/// Unacknowledged messages that AWS IoT takes from a client
/// (<https://docs.aws.amazon.com/general/latest/gr/iot-core.html#message-broker-limits>).
const UNACKNOWLEDGED: u16 = 100;
/// A connection that the broker closed sooner may have been taken over by another client.
const SHORT_LIVED: Duration = Duration::from_secs(5);
/// After so many of these in a row, [`Link::Down`] reports it.
const TAKEN_OVER: u32 = 3;

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// Timeout of a request. It starts when the request becomes pending, after any wait for [`Settings::max_pending`].
    /// Default: 15 s.
    pub deadline: Duration,
    /// How many requests may be pending; the next one waits. Default: 16. A burst waits here, where the next request
    /// goes out as soon as an answer comes. In the cloud it would wait as well, and be retried meanwhile. At most 100,
    /// which is how many unacknowledged messages AWS IoT takes from one client
    /// (<https://docs.aws.amazon.com/general/latest/gr/iot-core.html#message-broker-limits>).
    pub max_pending: u16,
    /// Timeout of [`Client::connect`], over all attempts. Default: 10 s.
    pub connect: Duration,
    /// Requests sent a second, retries included; the next one waits. Default: 40. AWS IoT discards what exceeds 100
    /// messages a second on a connection, requests and answers together.
    pub pace: f64,
    /// Send requests to [`Device::basic_ingest_topic`], which costs a message less. Default: off, because nobody else
    /// can subscribe to these requests, and the policy of a stack of an older template forbids the topic.
    pub basic_ingest: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(15),
            max_pending: 16,
            connect: Duration::from_secs(10),
            pace: REQUESTS_A_SECOND,
            basic_ingest: false,
        }
    }
}

/// State of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not connected, or not subscribed yet.
    Down {
        /// What happened last.
        reason: String,
        /// The broker refuses this client: waiting does not help.
        refused: bool,
        /// Most likely another client connects under the same id, again and again.
        taken_over: bool,
    },
    /// Connected, and the broker has confirmed the subscription.
    Up {
        /// The number of this connection, from 1.
        connection: u64,
    },
    /// Closed by [`Client::close`], for good.
    Closed,
}

/// A device's connection. It reconnects by itself until it is dropped or closed by [`Client::close`].
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
    pending: Mutex<Pending>,
    timer: Mutex<RetryTimer>,
    pace: Mutex<Pace>,
}

impl Client {
    /// Connect, subscribe to the device's answers, and wait for the broker's confirmation (SUBACK). An answer that came
    /// before it would be lost.
    ///
    /// # Errors
    /// [`ConnectError`] when the broker refuses, or when there is no connection within [`Settings::connect`].
    pub async fn connect(device: &Device, settings: Settings) -> Result<Self, ConnectError> {
        let mut options = device.options();
        options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
        options.set_inflight(PACKET_IDS);
        options.set_keep_alive(Duration::from_secs(30));
        // Room for all pending requests and the subscription.
        let (mqtt, mut events) = AsyncClient::new(options, usize::from(settings.max_pending) + 1);
        events.network_options.set_tcp_nodelay(true); // send small messages at once
        events
            .network_options
            .set_connection_timeout(CONNECT_SECONDS);

        let limit = settings.connect;
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
            permits: Semaphore::new(settings.max_pending.into()),
            pace: Mutex::new(Pace::new(settings.pace)),
            settings,
            mqtt,
            link,
            pending: Mutex::default(),
            timer: Mutex::default(),
        });
        let listener = tokio::spawn(listen(
            events,
            device.response_topic(),
            device.client_id().to_owned(),
            Arc::clone(&shared),
        ));
        // From here on, an early return drops the client, which ends the listener.
        let client = Self { shared, listener };
        let settled = |link: &Link| !matches!(link, Link::Down { refused: false, .. });
        let _ = timeout(limit, changes.wait_for(settled)).await;
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
                waited: limit,
                reason,
            }),
            Link::Closed => unreachable!("nobody else holds this client yet"),
        }
    }

    /// Send a request, and wait for the reply. Its `request_id` must differ from those of all other requests of this
    /// client. While [`Settings::max_pending`] requests are pending, it waits.
    ///
    /// Without a reply, the request is retried under the same id: after a timeout, and as soon as a lost connection is
    /// back. To stop waiting, drop the future; the request then counts as failed.
    ///
    /// # Errors
    /// [`AskError`], at the latest [`Settings::deadline`] after the request became pending.
    pub async fn ask(&self, request: &Value) -> Result<Reply, AskError> {
        let id = request["request_id"].as_str().unwrap_or_default();
        self.ask_text(id, request.to_string()).await
    }

    /// As [`Client::ask`], with the bytes of `request` as they are: JSON whose `request_id` is `id`.
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
        let mut reply = shared.pending().add(id)?;
        // Whatever happens from here on, the request ends once.
        let _pending = PendingRequest { shared, id };
        let asked = Instant::now();
        let mut attempts = 0;
        match timeout(
            shared.settings.deadline,
            shared.send_until_replied(request, &mut reply, &mut attempts),
        )
        .await
        {
            Ok(reply) => reply,
            Err(_) => {
                // From here on, no reply is delivered; one that came at this very moment is still in the channel.
                shared.pending().give_up(id);
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

    /// Ask the function which model it uses, and which features that model needs.
    ///
    /// # Errors
    /// [`DescribeError`]: no answer, a refusal, or an answer of another kind.
    pub async fn describe(&self) -> Result<Description, DescribeError> {
        let id = format!("describe-{:08x}", fastrand::u32(..));
        let reply = self.ask(&json!({"request_id": id, "describe": true})).await;
        self.shared.pending().forget(&reply);
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

    /// The counters since the start.
    pub fn counters(&self) -> Counters {
        self.shared.pending().counters
    }

    /// The state of the connection, now and whenever it changes.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }

    /// Disconnect from the broker, and end.
    pub async fn close(mut self) {
        self.shared.permits.close();
        self.shared.link.send_replace(Link::Closed);
        let _ = self.shared.mqtt.try_disconnect();
        // The listener ends when DISCONNECT is sent; without a connection, the drop ends it.
        let _ = timeout(Duration::from_secs(1), &mut self.listener).await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// A request that is pending while this value lives.
struct PendingRequest<'a> {
    shared: &'a Shared,
    id: &'a str,
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        self.shared.pending().give_up(self.id);
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending
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

    /// Send the request, and retry until there is a reply.
    async fn send_until_replied(
        &self,
        request: String,
        reply: &mut oneshot::Receiver<Reply>,
        attempts: &mut u32,
    ) -> Result<Reply, AskError> {
        let mut link = self.link.subscribe();
        loop {
            // Send nothing before the broker has confirmed the subscription, or when the reply is there.
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
                self.pending().counters.retried += 1;
            }
            let sent_at = Instant::now();
            let wait = self.timer().wait(*attempts);
            tokio::select! {
                biased;
                reply = &mut *reply => {
                    if *attempts == 1 {
                        self.timer().learn(sent_at.elapsed());
                    }
                    return reply.map_err(|_| AskError::Closed);
                }
                _ = sleep(wait) => self.timer().expired(*attempts),
                // A request that was sent on a lost connection may be lost: retry it on the next one.
                _ = link.wait_for(|link| *link != Link::Up { connection }) => {}
            }
        }
    }
}

/// Keep the connection: rumqttc does nothing unless its event loop is polled. Subscribe on every connection (a clean
/// session keeps no subscription), deliver what arrives, and reconnect when the connection breaks.
async fn listen(mut events: EventLoop, answers: String, client_id: String, shared: Arc<Shared>) {
    let mut reconnect = Reconnect::new();
    let mut link = shared.link.subscribe();
    // How many connections in a row the broker closed soon after they were made.
    let mut short_lived = 0;
    let mut connections = 0;
    let mut connected: Option<Instant> = None;
    // When something was sent, if nothing has arrived since.
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
            () = silence => Err(Lost::by_us(format!("the broker was silent for {SILENCE:?}"))),
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
                        // First, before all that waits in the channel, even if the channel is full. At QoS 0: the
                        // request of a lost answer is retried, and AWS charges for a device's PUBACK.
                        let subscribe = Subscribe::new(&answers, QoS::AtMostOnce);
                        events.pending.push_front(MqttRequest::Subscribe(subscribe));
                    }
                    Packet::SubAck(_) => {
                        shared.pending().counters.reconnected = connections - 1;
                        shared.change(Link::Up {
                            connection: connections,
                        });
                    }
                    Packet::Publish(message) => shared.pending().deliver(&message.payload),
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
                // The message that it waits for is never acknowledged; its request is retried.
                events.state.collision = None;
                // Events that were read and not handled yet: a SUBACK among them would count for the next connection.
                for event in events.state.events.drain(..) {
                    if let Event::Incoming(Packet::Publish(message)) = event {
                        shared.pending().deliver(&message.payload);
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
                // By now nobody sends. Drop what was sent meanwhile; it is retried.
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

    /// Change the state, unless it is [`Link::Closed`].
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

/// Why a connection cannot be used.
struct Lost {
    /// The broker refuses this client.
    refused: bool,
    /// This client gave the connection up; the broker did not close it.
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

/// The event, or [`Lost`] if it shows that this connection cannot be used.
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
        // All other packet ids were used since, and this one is not free: rumqttc sends nothing more until an
        // acknowledgement comes, which is most likely lost (<https://github.com/bytebeamio/rumqtt/issues/1056>).
        Event::Outgoing(Outgoing::AwaitAck(_)) => {
            Err(Lost::by_us("an acknowledgement is missing".to_owned()))
        }
        event => Ok(event),
    }
}

/// Whether the broker refused this client, and will refuse it again.
fn refusal(error: &ConnectionError) -> bool {
    use ConnectReturnCode::{BadClientId, BadUserNamePassword, NotAuthorized};
    matches!(
        error,
        ConnectionError::ConnectionRefused(NotAuthorized | BadClientId | BadUserNamePassword)
    )
}
