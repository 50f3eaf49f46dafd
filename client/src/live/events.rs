//! The stream to one page.
//!
//! A page gets every answer while there are few. Where there are more than [`DRAWN`] in [`EVERY`], it gets an even
//! sample, and the number of answers behind it. For a browser that reads slowly, the channel drops the oldest answers,
//! and the page gets their number.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, unfold};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};
use tokio::time::{Instant, sleep_until};

use super::asking::Asking;
use super::guard::Refusal;
use super::outcome::Encoded;
use super::rows::Run;

/// Answers that arrive within this time of each other come in one message: two frames of a screen.
const EVERY: Duration = Duration::from_millis(33);
/// Answers of the run that a page draws in that time.
const DRAWN: f64 = 8.0;
/// A page that had to wait draws what it missed, up to this many.
const AT_ONCE: f64 = 64.0;

/// What one page subscribes to.
struct Page {
    asking: Arc<Asking>,
    may_pause: bool,
    runs: watch::Receiver<Arc<Run>>,
    answers: broadcast::Receiver<Arc<Encoded>>,
    status: watch::Receiver<Arc<str>>,
    over: watch::Receiver<bool>,
    /// When the last answers were sent.
    sent: Instant,
    _place: OwnedSemaphorePermit,
}

/// The current state, and every event from now on.
pub fn stream(
    asking: Arc<Asking>,
    may_pause: bool,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let mut page = Page {
        runs: asking.run.subscribe(),
        may_pause,
        answers: asking.answers.subscribe(),
        status: asking.status.subscribe(),
        over: asking.over.subscribe(),
        sent: Instant::now(),
        _place: asking.page()?,
        asking,
    };
    page.status.mark_changed();
    page.runs.mark_changed();
    let stream = unfold(page, |mut page| async {
        let event = page.next().await?;
        Some((Ok(event), page))
    });
    // A comment now and then detects a browser that is gone.
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

impl Page {
    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Event> {
        let event = |name: &str, json: &str| Some(Event::default().event(name).data(json));
        tokio::select! {
            biased;
            _ = self.over.wait_for(|over| *over) => None,
            changed = self.runs.changed() => {
                changed.ok()?;
                event("about", &self.asking.about(self.may_pause))
            }
            changed = self.status.changed() => {
                changed.ok()?;
                event("status", &self.status.borrow_and_update())
            }
            answers = gather(&mut self.answers, self.sent) => {
                self.sent = Instant::now();
                event("answers", &answers?)
            }
        }
    }
}

/// The answers that have arrived, once [`EVERY`] has passed; `None` when no more will come. Cancel-safe: after it has
/// received the first answer, it does not wait.
async fn gather(answers: &mut broadcast::Receiver<Arc<Encoded>>, sent: Instant) -> Option<String> {
    sleep_until(sent + EVERY).await;
    let (mut pages, mut run, mut of) = (Vec::new(), Vec::new(), 0);
    let mut next = answers.recv().await;
    loop {
        match next {
            Ok(encoded) => {
                of += 1;
                let kind = if encoded.from_page {
                    &mut pages
                } else {
                    &mut run
                };
                kind.push(encoded);
            }
            Err(RecvError::Lagged(missed)) => of += missed,
            Err(RecvError::Closed) => return None,
        }
        next = match answers.try_recv() {
            Ok(encoded) => Ok(encoded),
            Err(TryRecvError::Lagged(missed)) => Err(RecvError::Lagged(missed)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        };
    }
    Some(message(&pages, &run, of, room(sent.elapsed())))
}

/// How many answers of the run are drawn after this long without any.
fn room(since: Duration) -> usize {
    (DRAWN * since.as_secs_f64() / EVERY.as_secs_f64()).clamp(DRAWN, AT_ONCE) as usize
}

/// `{"of": …, "answers": […]}`: all answers to pages, and a sample of `room` answers of the run.
fn message(pages: &[Arc<Encoded>], run: &[Arc<Encoded>], of: u64, room: usize) -> String {
    let drawn = run.len().min(room);
    // Evenly picked, and the last one always: it is the newest.
    let run = (1..=drawn).map(|k| &run[k * run.len() / drawn - 1]);
    let answers: Vec<_> = pages
        .iter()
        .chain(run)
        .map(|encoded| encoded.json.as_str())
        .collect();
    format!(r#"{{"of":{of},"answers":[{}]}}"#, answers.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn encoded(json: u64, from_page: bool) -> Arc<Encoded> {
        Arc::new(Encoded {
            json: json.to_string(),
            from_page,
        })
    }

    async fn next(answers: &mut broadcast::Receiver<Arc<Encoded>>) -> Value {
        let text = gather(answers, Instant::now()).await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[tokio::test]
    async fn a_few_answers_are_all_there() {
        let to = broadcast::Sender::new(16);
        let mut answers = to.subscribe();
        for n in 0..3 {
            to.send(encoded(n, false)).ok();
        }
        assert_eq!(
            next(&mut answers).await,
            json!({"of": 3, "answers": [0, 1, 2]})
        );
    }

    #[test]
    fn of_many_a_sample_is_there_with_the_newest_and_what_people_asked() {
        let run: Vec<_> = (0..80).map(|n| encoded(n, false)).collect();
        let text = message(&[encoded(99, true)], &run, 81, 8);
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            message,
            json!({"of": 81, "answers": [99, 9, 19, 29, 39, 49, 59, 69, 79]})
        );
    }

    #[test]
    fn a_page_that_waited_draws_more_up_to_a_limit() {
        let rooms = [1, 33, 200, 10_000].map(|ms| room(Duration::from_millis(ms)));
        assert_eq!(rooms, [8, 8, 48, 64]);
    }

    #[tokio::test]
    async fn what_a_slow_page_missed_is_counted_and_not_kept() {
        let to = broadcast::Sender::new(4);
        let mut answers = to.subscribe();
        for n in 0..100 {
            to.send(encoded(n, false)).ok();
        }
        assert_eq!(
            next(&mut answers).await,
            json!({"of": 100, "answers": [96, 97, 98, 99]})
        );
    }
}
