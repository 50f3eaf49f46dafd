//! Which questions are open, what became of the others, and how it all went in numbers.

use std::collections::{HashMap, VecDeque};
use std::iter::Sum;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::error::AskError;

/// How many closed questions are remembered, to tell a second answer from a stranger's.
const REMEMBERED: usize = 4096;

/// What the function said.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The prediction or predictions, with all that stands beside them.
    Answer(Value),
    /// What was wrong with the question: `{"code", "message"}`.
    Refusal(Value),
}

/// How it went so far. `asked = answered + refused + failed + still open`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Questions taken.
    pub asked: u64,
    /// Questions answered.
    pub answered: u64,
    /// Questions refused by the function, with a reason.
    pub refused: u64,
    /// Questions that ended without either, in an error.
    pub failed: u64,
    /// How often a question was sent again.
    pub retried: u64,
    /// Replies to questions that had theirs.
    pub duplicate: u64,
    /// Replies to questions that had failed by then.
    pub late: u64,
    /// Messages that reply to no question of ours.
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

/// The open questions, and the last closed ones.
#[derive(Default)]
pub(crate) struct Questions {
    open: HashMap<String, oneshot::Sender<Reply>>,
    /// By id, whether it was replied to.
    closed: HashMap<Arc<str>, bool>,
    /// The ids in `closed`, the oldest first.
    order: VecDeque<Arc<str>>,
    pub(crate) counters: Counters,
}

impl Questions {
    /// A question is asked from here on; its reply comes through the channel.
    pub(crate) fn open(&mut self, id: &str) -> Result<oneshot::Receiver<Reply>, AskError> {
        if self.open.contains_key(id) || self.closed.contains_key(id) {
            return Err(AskError::RequestIdInUse(id.to_owned()));
        }
        let (sender, receiver) = oneshot::channel();
        self.open.insert(id.to_owned(), sender);
        self.counters.asked += 1;
        Ok(receiver)
    }

    /// A message came in: it closes its question, or is counted and dropped.
    pub(crate) fn deliver(&mut self, payload: &[u8]) {
        let Ok(mut message) = serde_json::from_slice::<Value>(payload) else {
            self.counters.stray += 1;
            return;
        };
        let id = message["request_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let Some(asker) = self.open.remove(&id) else {
            let count = match self.closed.get(id.as_str()) {
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
        // Nobody is there to hear it when the asker gave up in this very moment.
        let _ = asker.send(reply);
    }

    /// A question is given up, unless it was replied to.
    pub(crate) fn give_up(&mut self, id: &str) {
        if self.open.remove(id).is_some() {
            self.counters.failed += 1;
            self.remember(id, false);
        }
    }

    /// A question of the client's own is not one of its caller's: it is not counted.
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
            self.closed.remove(&oldest);
        }
        let id: Arc<str> = id.into();
        self.order.push_back(Arc::clone(&id));
        self.closed.insert(id, replied);
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
    fn the_first_reply_closes_and_the_second_is_a_duplicate() {
        let mut questions = Questions::default();
        let mut reply = questions.open("a").unwrap();
        questions.deliver(&answer("a"));
        questions.deliver(&answer("a"));
        assert!(matches!(reply.try_recv(), Ok(Reply::Answer(a)) if a["kind"] == "a"));
        let Counters {
            answered,
            duplicate,
            ..
        } = questions.counters;
        assert_eq!((answered, duplicate), (1, 1));
    }

    #[test]
    fn a_refusal_is_a_reply() {
        let mut questions = Questions::default();
        let mut reply = questions.open("a").unwrap();
        questions
            .deliver(br#"{"request_id": "a", "error": {"code": "out_of_range", "message": "m"}}"#);
        assert!(matches!(reply.try_recv(), Ok(Reply::Refusal(e)) if e["code"] == "out_of_range"));
        assert_eq!(questions.counters.refused, 1);
    }

    #[test]
    fn after_giving_up_a_reply_is_late() {
        let mut questions = Questions::default();
        let _reply = questions.open("a").unwrap();
        questions.give_up("a");
        questions.give_up("a");
        questions.deliver(&answer("a"));
        let Counters { failed, late, .. } = questions.counters;
        assert_eq!((failed, late), (1, 1));
    }

    #[test]
    fn an_id_is_used_once() {
        let mut questions = Questions::default();
        let _reply = questions.open("a").unwrap();
        assert!(questions.open("a").is_err());
        questions.deliver(&answer("a"));
        assert!(questions.open("a").is_err());
    }

    #[test]
    fn what_replies_to_nobody_is_stray() {
        let mut questions = Questions::default();
        for message in [
            &b"\xff"[..],
            b"",
            b"[]",
            b"{}",
            br#"{"request_id": null}"#,
            &answer("other"),
        ] {
            questions.deliver(message);
        }
        assert_eq!(questions.counters.stray, 6);
    }

    proptest! {
        /// Whatever the order of events, every question ends once, the sum holds, and memory is bounded.
        #[test]
        fn every_question_ends_exactly_once(events in prop::collection::vec((0u8..3, 0u16..50), 0..400)) {
            let mut questions = Questions::default();
            for (event, id) in events {
                let id = id.to_string();
                match event {
                    0 => drop(questions.open(&id)),
                    1 => questions.deliver(&answer(&id)),
                    _ => questions.give_up(&id),
                }
                let Counters { asked, answered, refused, failed, .. } = questions.counters;
                prop_assert_eq!(asked, answered + refused + failed + questions.open.len() as u64);
                prop_assert_eq!(questions.closed.len(), questions.order.len());
            }
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut questions = Questions::default();
        for n in 0..3 * REMEMBERED {
            let _reply = questions.open(&n.to_string());
            questions.deliver(&answer(&n.to_string()));
        }
        assert_eq!(
            (
                questions.closed.len(),
                questions.order.len(),
                questions.open.len()
            ),
            (REMEMBERED, REMEMBERED, 0)
        );
    }
}
