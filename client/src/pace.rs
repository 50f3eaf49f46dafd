//! How long to wait: before the next message may be sent, before a request is retried, and before a connection
//! is tried again.

use std::time::{Duration, Instant};

/// Publishes a second that AWS IoT takes on one connection, both directions together; it discards what exceeds that,
/// without an acknowledgement (<https://docs.aws.amazon.com/general/latest/gr/iot-core.html#message-broker-limits>).
pub const BROKER_LIMIT: f64 = 100.0;
/// Requests a second on one connection. With their answers they are 80 publishes; the rest is room for late answers
/// that come together, after a cold start for example.
pub const REQUESTS_A_SECOND: f64 = 40.0;

/// When the next message may be sent: a token bucket, kept as the time at which it would be full again
/// (the generic cell rate algorithm, ITU-T I.371).
#[derive(Debug, Clone)]
pub struct Pace {
    interval: Duration,
    next: Option<Instant>,
}

impl Pace {
    /// How many may be sent at once after a pause. In any second, 42 requests, their answers and 16 late answers are
    /// [`BROKER_LIMIT`].
    const BURST: u32 = 2;

    /// A bucket for `a_second` messages a second.
    pub fn new(a_second: f64) -> Self {
        Self {
            interval: Duration::try_from_secs_f64(1.0 / a_second).unwrap_or(Duration::MAX),
            next: None,
        }
    }

    /// Take a token, and return the time from which it is valid.
    pub fn take(&mut self, now: Instant) -> Instant {
        let earliest = now
            .checked_sub(self.interval.saturating_mul(Self::BURST - 1))
            .unwrap_or(now);
        let token = self.next.map_or(earliest, |next| next.max(earliest));
        self.next = token.checked_add(self.interval).or(Some(token));
        token.max(now)
    }
}

/// When to retry, learned from the round trips so far: TCP's retransmission timer (RFC 6298).
///
/// A fixed timeout would be too long on a fast network and, where answers slow down under load, so short
/// that retries add to the load.
#[derive(Debug, Clone)]
pub struct RetryTimer {
    /// Smoothed round trip and its mean deviation; `None` before the first answer.
    measured: Option<(Duration, Duration)>,
    /// How often the wait is doubled, until a round trip is measured again.
    backoff: u32,
}

/// The timeout before a round trip is measured: longer than most cold starts (RFC 6298 has 1 s).
const FIRST: Duration = Duration::from_secs(2);
/// The shortest timeout: waiting for a late answer costs nothing.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest timeout.
const LONGEST: Duration = Duration::from_secs(8);

impl RetryTimer {
    /// Nothing measured yet.
    pub fn new() -> Self {
        Self {
            measured: None,
            backoff: 0,
        }
    }

    /// Learn from a request that was sent once and answered after `round_trip`. A retried request shows nothing: it is
    /// not known which attempt was answered (Karn's algorithm).
    ///
    /// With R the round trip: var ← ¾ var + ¼ |smooth − R|, smooth ← ⅞ smooth + ⅛ R.
    pub fn learn(&mut self, round_trip: Duration) {
        self.backoff = 0;
        self.measured = Some(match self.measured {
            None => (round_trip, round_trip / 2),
            Some((smooth, deviation)) => (
                smooth * 7 / 8 + round_trip / 8,
                deviation * 3 / 4 + smooth.abs_diff(round_trip) / 4,
            ),
        });
    }

    /// The timeout of the `attempt`th attempt was too short: the next request waits longer too. Otherwise, round trips
    /// that have grown beyond the timeout would never be measured again, because every request would be sent twice (the
    /// other half of Karn's algorithm).
    pub fn expired(&mut self, attempt: u32) {
        self.backoff = self.backoff.max(attempt);
    }

    /// The timeout of the `attempt`th attempt (from 1): smooth + 4 var, twice as long each time, and up to a quarter
    /// more, so that no two devices wait exactly as long.
    pub fn wait(&self, attempt: u32) -> Duration {
        let one = self
            .measured
            .map_or(FIRST, |(smooth, deviation)| smooth + deviation * 4);
        let doublings = attempt.saturating_sub(1).max(self.backoff).min(8);
        let doubled = one.max(SHORTEST).saturating_mul(1 << doublings);
        // More, never less: a steady round trip has no deviation, and its answer would come just after the timeout.
        doubled.mul_f64(1.0 + 0.25 * fastrand::f64()).min(LONGEST)
    }
}

impl Default for RetryTimer {
    fn default() -> Self {
        Self::new()
    }
}

/// How long to wait before the next connection: twice as long after each one that did not last.
#[derive(Debug, Clone)]
pub struct Reconnect {
    next: Duration,
}

impl Reconnect {
    /// AWS IoT takes one CONNECT a second for a client id, whoever sends it. A connection that was just lost may
    /// have been taken over by another client, which has used this second's.
    const SHORTEST: Duration = Duration::from_secs(1);
    /// Also the longest time that a broker is back before this client tries again.
    const LONGEST: Duration = Duration::from_secs(2);
    /// A connection that lasted so long resets the waits.
    const GOOD: Duration = Duration::from_secs(1);

    /// The first wait is the shortest.
    pub fn new() -> Self {
        Self {
            next: Self::SHORTEST,
        }
    }

    /// The wait after a connection that lasted for `lasted`; zero where none was made.
    pub fn after(&mut self, lasted: Duration) -> Duration {
        if lasted >= Self::GOOD {
            self.next = Self::SHORTEST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(Self::LONGEST);
        // Thirty laptops that lost the same broker must not reconnect in the same millisecond.
        wait.mul_f64(1.0 + 0.25 * fastrand::f64())
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_steady_round_trip_is_waited_for_and_not_much_longer() {
        let mut timer = RetryTimer::new();
        (0..100).for_each(|_| timer.learn(Duration::from_secs(2)));
        let wait = timer.wait(1);
        assert!(
            wait >= Duration::from_secs(2) && wait <= Duration::from_millis(2600),
            "{wait:?}"
        );
    }

    #[test]
    fn each_attempt_waits_longer_up_to_a_limit() {
        let timer = RetryTimer::new();
        for attempt in 1..3 {
            assert!(timer.wait(attempt) < timer.wait(attempt + 1));
        }
        assert!(timer.wait(u32::MAX) <= LONGEST);
    }

    /// Send until the answer comes before the timeout, and count the retries.
    fn retries(timer: &mut RetryTimer, round_trip: Duration) -> u32 {
        for attempt in 1.. {
            if timer.wait(attempt) >= round_trip {
                if attempt == 1 {
                    timer.learn(round_trip);
                }
                return attempt - 1;
            }
            timer.expired(attempt);
        }
        unreachable!("the wait grows beyond any round trip of this test")
    }

    #[test]
    fn round_trips_that_have_grown_are_learned() {
        let mut timer = RetryTimer::new();
        (0..100).for_each(|_| timer.learn(Duration::from_millis(10)));
        for ms in [1500, 3000, 7000] {
            let mut again = 0;
            for _ in 0..50 {
                again += retries(&mut timer, Duration::from_millis(ms));
            }
            // Two or three, and seldom more: each wait has a random part. Without `expired`, it is all fifty.
            assert!(again <= 10, "{again} of 50 retried at {ms} ms");
        }
    }

    #[test]
    fn a_connection_that_lasted_resets_the_waits() {
        let mut reconnect = Reconnect::new();
        let waits: Vec<_> = (0..8).map(|_| reconnect.after(Duration::ZERO)).collect();
        let short = Reconnect::SHORTEST.mul_f64(1.25);
        assert!(
            waits.iter().all(|wait| *wait >= Reconnect::SHORTEST),
            "{waits:?}"
        );
        assert!(
            waits[7] >= Reconnect::LONGEST && waits[0] <= short,
            "{waits:?}"
        );
        assert!(reconnect.after(Duration::from_secs(60)) <= short);
    }

    proptest! {
        /// Whenever requests come: a second holds at most the rate, and a burst.
        #[test]
        fn no_second_holds_more_than_the_bucket(rate in 1u32..200, gaps in prop::collection::vec(0u64..100, 1..300)) {
            let (mut pace, mut now) = (Pace::new(rate.into()), Instant::now());
            let mut sent = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                sent.push(pace.take(now));
            }
            for (n, first) in sent.iter().enumerate() {
                let within = sent[n..].iter().filter(|at| **at < *first + Duration::from_secs(1)).count();
                prop_assert!(within <= (rate + Pace::BURST) as usize, "{} in a second", within);
            }
        }
    }

    #[test]
    fn who_asks_slowly_never_waits() {
        let (mut pace, mut now) = (Pace::new(40.0), Instant::now());
        for _ in 0..100 {
            assert_eq!(pace.take(now), now);
            now += Duration::from_millis(25);
        }
    }

    proptest! {
        #[test]
        fn no_round_trip_makes_the_wait_endless_or_nothing(round_trips in prop::collection::vec(0u64..1_000_000, 0..50), attempt in 0u32..100) {
            let mut timer = RetryTimer::new();
            round_trips.into_iter().for_each(|ms| timer.learn(Duration::from_millis(ms)));
            let wait = timer.wait(attempt);
            prop_assert!(wait >= SHORTEST && wait <= LONGEST);
        }
    }
}
