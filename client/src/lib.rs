//! The device's side: ask for predictions over MQTT, on a network that loses things.
//!
//! * [`device`]: who asks, as `make device` wrote it down.
//! * [`client`]: the connection. It comes back by itself, and every question ends in exactly one of an
//!   answer, a refusal or a typed failure.
//! * [`questions`]: which questions are open, what became of the others, and how it all went in numbers.
//! * [`pace`]: how long to wait, before a message is sent, a question asked again, a connection tried again.
//! * [`table`]: a CSV file, as people have them, as rows to ask about.
//! * [`error`]: what can go wrong.
//!
//! MQTT gives none of this: a broker may deliver twice or, where a connection breaks, not at all, and an
//! IoT rule calls the function asynchronously. What makes it safe to ask again is that the same question
//! has the same answer.

pub mod client;
pub mod device;
pub mod error;
pub mod pace;
pub mod questions;
pub mod table;

pub use client::{Client, Link, Settings};
pub use device::Device;
pub use error::{AskError, ConnectError, DescribeError, DeviceError};
pub use iris_fn::Description;
pub use questions::{Counters, Reply};
