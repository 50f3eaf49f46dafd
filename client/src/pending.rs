//! Which requests are pending, how the others ended, and the counters.

use std::collections::{HashMap, VecDeque};
use std::iter::Sum;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::error::AskError;

/// How many ended requests are remembered, to tell a duplicate or late answer from a stray one.
const REMEMBERED: usize = 4096;

/// What the function replied.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The prediction or predictions, with all other fields of the answer.
    Answer(Value),
    /// What was wrong with the request: `{"code", "message"}`.
    Refusal(Value),
}

/// Counters since the start. `asked = answered + refused + failed + pending`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Requests accepted by [`crate::Client::ask`].
    pub asked: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that the function refused, with a reason.
    pub refused: u64,
    /// Requests that ended without either, in an error.
    pub failed: u64,
    /// How often a request was sent again.
    pub retried: u64,
    /// Replies to requests that already had one.
    pub duplicate: u64,
    /// Replies to requests that had failed by then.
    pub late: u64,
    /// Messages that reply to no request of this client.
    pub stray: u64,
    /// Connections made after the first one.
    pub reconnected: u64,
}

impl Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            asked: a.asked + b.asked,
            answered: a.answered + b.answered,
            refused: a.refused + b.refused,
            failed: a.failed + b.failed,
            retried: a.retried + b.retried,
            duplicate: a.duplicate + b.duplicate,
            late: a.late + b.late,
            stray: a.stray + b.stray,
            reconnected: a.reconnected + b.reconnected,
        })
    }
}

/// The pending requests, and the last ended ones.
#[derive(Default)]
pub(crate) struct Pending {
    waiting: HashMap<String, oneshot::Sender<Reply>>,
    /// By id, whether there was a reply.
    ended: HashMap<Arc<str>, bool>,
    /// The ids in `ended`, the oldest first.
    order: VecDeque<Arc<str>>,
    pub(crate) counters: Counters,
}

impl Pending {
    /// A request is pending from here on; its reply comes through the channel.
    pub(crate) fn add(&mut self, id: &str) -> Result<oneshot::Receiver<Reply>, AskError> {
        if self.waiting.contains_key(id) || self.ended.contains_key(id) {
            return Err(AskError::RequestIdInUse(id.to_owned()));
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(id.to_owned(), sender);
        self.counters.asked += 1;
        Ok(receiver)
    }

    /// A message arrived: it ends its request, or is counted and dropped.
    pub(crate) fn deliver(&mut self, payload: &[u8]) {
        let Ok(mut message) = serde_json::from_slice::<Value>(payload) else {
            self.counters.stray += 1;
            return;
        };
        let id = message["request_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let Some(asker) = self.waiting.remove(&id) else {
            let count = match self.ended.get(id.as_str()) {
                Some(true) => &mut self.counters.duplicate,
                Some(false) => &mut self.counters.late,
                None => &mut self.counters.stray,
            };
            *count += 1;
            return;
        };
        let reply = match message.get_mut("error") {
            Some(error) => Reply::Refusal(error.take()),
            None => Reply::Answer(message),
        };
        let count = match &reply {
            Reply::Answer(_) => &mut self.counters.answered,
            Reply::Refusal(_) => &mut self.counters.refused,
        };
        *count += 1;
        self.remember(&id, true);
        // The receiver is gone when the caller gave up at this very moment.
        let _ = asker.send(reply);
    }

    /// A request has failed, unless there was a reply.
    pub(crate) fn give_up(&mut self, id: &str) {
        if self.waiting.remove(id).is_some() {
            self.counters.failed += 1;
            self.remember(id, false);
        }
    }

    /// A request of the client's own is not one of its caller's: take it out of the counters.
    pub(crate) fn forget(&mut self, reply: &Result<Reply, AskError>) {
        let ended = match reply {
            Ok(Reply::Answer(_)) => &mut self.counters.answered,
            Ok(Reply::Refusal(_)) => &mut self.counters.refused,
            Err(_) => &mut self.counters.failed,
        };
        let (before, asked) = (ended.checked_sub(1), self.counters.asked.checked_sub(1));
        if let (Some(before), Some(asked)) = (before, asked) {
            (*ended, self.counters.asked) = (before, asked);
        }
    }

    fn remember(&mut self, id: &str, replied: bool) {
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        let id: Arc<str> = id.into();
        self.order.push_back(Arc::clone(&id));
        self.ended.insert(id, replied);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn answer(id: &str) -> Vec<u8> {
        json!({"request_id": id, "kind": "a"})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn the_first_reply_ends_a_request_and_the_second_is_a_duplicate() {
        let mut pending = Pending::default();
        let mut reply = pending.add("a").unwrap();
        pending.deliver(&answer("a"));
        pending.deliver(&answer("a"));
        assert!(matches!(reply.try_recv(), Ok(Reply::Answer(a)) if a["kind"] == "a"));
        let Counters {
            answered,
            duplicate,
            ..
        } = pending.counters;
        assert_eq!((answered, duplicate), (1, 1));
    }

    #[test]
    fn a_refusal_is_a_reply() {
        let mut pending = Pending::default();
        let mut reply = pending.add("a").unwrap();
        pending
            .deliver(br#"{"request_id": "a", "error": {"code": "out_of_range", "message": "m"}}"#);
        assert!(matches!(reply.try_recv(), Ok(Reply::Refusal(e)) if e["code"] == "out_of_range"));
        assert_eq!(pending.counters.refused, 1);
    }

    #[test]
    fn after_giving_up_a_reply_is_late() {
        let mut pending = Pending::default();
        let _reply = pending.add("a").unwrap();
        pending.give_up("a");
        pending.give_up("a");
        pending.deliver(&answer("a"));
        let Counters { failed, late, .. } = pending.counters;
        assert_eq!((failed, late), (1, 1));
    }

    #[test]
    fn an_id_is_used_once() {
        let mut pending = Pending::default();
        let _reply = pending.add("a").unwrap();
        assert!(pending.add("a").is_err());
        pending.deliver(&answer("a"));
        assert!(pending.add("a").is_err());
    }

    #[test]
    fn what_replies_to_nobody_is_stray() {
        let mut pending = Pending::default();
        for message in [
            &b"\xff"[..],
            b"",
            b"[]",
            b"{}",
            br#"{"request_id": null}"#,
            &answer("other"),
        ] {
            pending.deliver(message);
        }
        assert_eq!(pending.counters.stray, 6);
    }

    proptest! {
        /// Whatever the order of events, every request ends once, the sum holds, and memory is bounded.
        #[test]
        fn every_request_ends_exactly_once(events in prop::collection::vec((0u8..3, 0u16..50), 0..400)) {
            let mut pending = Pending::default();
            for (event, id) in events {
                let id = id.to_string();
                match event {
                    0 => drop(pending.add(&id)),
                    1 => pending.deliver(&answer(&id)),
                    _ => pending.give_up(&id),
                }
                let Counters { asked, answered, refused, failed, .. } = pending.counters;
                prop_assert_eq!(asked, answered + refused + failed + pending.waiting.len() as u64);
                prop_assert_eq!(pending.ended.len(), pending.order.len());
            }
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut pending = Pending::default();
        for n in 0..3 * REMEMBERED {
            let _reply = pending.add(&n.to_string());
            pending.deliver(&answer(&n.to_string()));
        }
        assert_eq!(
            (
                pending.ended.len(),
                pending.order.len(),
                pending.waiting.len()
            ),
            (REMEMBERED, REMEMBERED, 0)
        );
    }
}
