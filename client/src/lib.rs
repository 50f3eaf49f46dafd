//! The device's side: ask for predictions over MQTT, on a network that loses messages.
//!
//! * [`device`]: a device's endpoint and certificate, from the folder that `make device` writes.
//! * [`client`]: the connection. It reconnects by itself, and every request ends in exactly one of an
//!   answer, a refusal or a typed failure.
//! * [`pending`]: which requests are pending, how the others ended, and the counters.
//! * [`pace`]: how long to wait before a message is sent, a request retried, or a connection tried again.
//! * [`table`]: a CSV file, as people have them, as rows to ask about.
//! * [`error`]: what can go wrong.
//!
//! MQTT gives none of this: a broker may deliver twice or, where a connection breaks, not at all, and an
//! IoT rule calls the function asynchronously. Retries are safe because a prediction changes nothing: the same
//! request has the same answer.

pub mod client;
pub mod device;
pub mod error;
pub mod pace;
pub mod pending;
pub mod table;

pub use client::{Client, Link, Settings};
pub use device::Device;
pub use error::{AskError, ConnectError, DescribeError, DeviceError};
pub use iris_fn::Description;
pub use pending::{Counters, Reply};
