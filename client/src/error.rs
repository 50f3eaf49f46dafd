//! What can go wrong, with the values that show it and the next step.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use iris_fn::request::{MAX_PAYLOAD, MAX_REQUEST_ID};

/// Why a device's folder cannot be used.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A file in it could not be read.
    #[error("cannot read {path}: {source}; `make device NAME=…` writes it")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// `endpoint.json` is not what `make device` writes.
    #[error("{path} is not a device's endpoint: {source}; delete the folder, then `make device`")]
    Endpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Why there is no connection at the start.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ConnectError {
    /// The broker answered, and refused this client.
    #[error("{address} refuses {client_id}: {reason}; `make device` renews a certificate")]
    Refused {
        /// Host and port.
        address: String,
        /// The MQTT client id.
        client_id: String,
        /// The broker's reason.
        reason: String,
    },
    /// No connection within the timeout.
    #[error(
        "no connection to {address} as {client_id} in {waited:?}, last: {reason}; \
         `make status` says whether the cloud is running, `make device` renews a certificate"
    )]
    Unreachable {
        /// Host and port.
        address: String,
        /// The MQTT client id.
        client_id: String,
        /// How long it was tried.
        waited: Duration,
        /// What happened last.
        reason: String,
    },
}

/// Why a request has neither answer nor refusal. Each of these is returned within the deadline.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum AskError {
    /// Nothing could match an answer to the request.
    #[error("a request needs a `request_id`: a text of 1 to {MAX_REQUEST_ID} bytes")]
    NoRequestId,
    /// Answers to two requests could not be told apart.
    #[error("request_id {0:?} was used before: give each request one of its own")]
    RequestIdInUse(String),
    /// AWS IoT would close the connection for it, and lose all other pending messages.
    #[error(
        "the request has {bytes} bytes, AWS IoT takes at most {MAX_PAYLOAD}: ask in smaller batches"
    )]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// No answer within the deadline.
    #[error("no answer to {request_id:?} in {waited:?}, sent {attempts} times{}", after(.connection))]
    NoAnswer {
        /// The id of the request.
        request_id: String,
        /// How long it was pending.
        waited: Duration,
        /// How often it was sent.
        attempts: u32,
        /// Why there was no connection at the deadline, if there was none.
        connection: Option<String>,
    },
    /// [`crate::Client::close`] was called.
    #[error("the connection was closed")]
    Closed,
}

/// Why the function did not describe its model.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum DescribeError {
    /// No answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The function refused, because there is no model, for example.
    #[error("the function does not describe its model: {message}")]
    Refused {
        /// The function's message.
        message: String,
    },
    /// An answer of another kind: the function is older than this client.
    #[error(
        "the function's description of its model cannot be read: {0}; `make deploy` renews the function"
    )]
    Unreadable(String),
}

impl AskError {
    /// A stable name, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRequestId => "no_request_id",
            Self::RequestIdInUse(_) => "request_id_in_use",
            Self::TooLarge { .. } => "too_large",
            Self::NoAnswer { .. } => "no_answer",
            Self::Closed => "closed",
        }
    }
}

fn after(connection: &Option<String>) -> String {
    let reason = connection.as_ref();
    reason.map_or(String::new(), |reason| format!("; no connection: {reason}"))
}
