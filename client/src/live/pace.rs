//! Background tasks: the run at its rate, the status once a second, and which model answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::asking::{Asking, GONE, RUN_PENDING};
use super::regions;
use super::rows::Run;

/// A run that was delayed makes up for this much of the delay, and skips the rest.
const CATCH_UP: Duration = Duration::from_millis(250);
/// How often to check for viewers.
const CHECK_VIEWERS: Duration = Duration::from_millis(100);
/// How often to check which model answers, and whether the device's folder exists.
const CHECK_CLOUD: Duration = Duration::from_secs(1);

/// Describe the model again when another one seems to answer.
pub async fn keep(asking: Arc<Asking>) {
    loop {
        asking.doubt.notified().await;
        if let Ok(model) = asking.client.describe().await {
            let old = asking.current();
            if old.model.model != model.model {
                let same = (&old.model.features, &old.model.classes, &old.model.target)
                    == (&model.features, &model.classes, &model.target);
                let mut run = Run::new(model, &asking.csv, old.shape + u64::from(!same));
                run.axes = if same {
                    old.axes
                } else {
                    regions::axes(&asking, &run).await.unwrap_or(run.axes)
                };
                println!("{}", run.line());
                asking.run.send_replace(Arc::new(run));
            }
        }
        sleep(CHECK_CLOUD).await;
    }
}

/// Stop the run when the device's folder is deleted, as `make destroy` does. The connection may outlive its stack, and
/// then nobody answers.
pub async fn notice(asking: Arc<Asking>, folder: PathBuf) {
    let mut missed = 0;
    // Twice: `make device` may be writing it again.
    while missed < 2 {
        sleep(CHECK_CLOUD).await;
        missed = if folder.exists() { 0 } else { missed + 1 };
    }
    eprintln!("{GONE}.");
    asking.gone.store(true, Ordering::Relaxed);
    asking.on.send_replace(false);
}

/// Ask about the rows, over and over, each time in another order, while the run is on and there are viewers: a
/// forgotten terminal costs nothing.
pub async fn run(asking: Arc<Asking>) {
    let every = Duration::from_secs_f64(1.0 / asking.rate);
    let slots = Arc::new(Semaphore::new(RUN_PENDING.into()));
    let mut on = asking.on.subscribe();
    let mut pending = JoinSet::new();
    let mut due = tokio::time::Instant::now();
    let (mut shape, mut order) = (u64::MAX, Vec::new());
    loop {
        if on.wait_for(|on| *on).await.is_err() {
            return;
        }
        while asking.answers.receiver_count() == 0 {
            sleep(CHECK_VIEWERS).await;
        }
        let Ok(permit) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        while pending.try_join_next().is_some() {}
        let now = tokio::time::Instant::now();
        due = (due + every).max(now.checked_sub(CATCH_UP).unwrap_or(now));
        sleep_until(due).await;
        let run = asking.current();
        if order.is_empty() || shape != run.shape {
            // Shuffle: a file is often sorted by class.
            shape = run.shape;
            order = (0..run.rows.len()).collect();
            fastrand::shuffle(&mut order);
        }
        let row = order.pop().unwrap_or(0);
        let asking = Arc::clone(&asking);
        pending.spawn(async move {
            if let Some((values, truth)) = run.rows.get(row) {
                asking
                    .ask_and_broadcast(&run, values, truth.as_deref(), false)
                    .await;
            }
            drop(permit);
        });
    }
}

/// Send the status once a second, and at once when the run is started or paused.
pub async fn report(asking: Arc<Asking>) {
    let replies = || {
        let counters = asking.client.counters();
        counters.answered + counters.refused
    };
    let (mut before, mut since) = (replies(), Instant::now());
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut on = asking.on.subscribe();
    let mut per_second = 0.0;
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let now = replies();
                per_second = (now - before) as f64 / since.elapsed().as_secs_f64().max(1e-3);
                (before, since) = (now, Instant::now());
            }
            // The page's button shows the change at once.
            _ = on.changed() => {}
        }
        asking.status.send_replace(asking.status_text(per_second));
    }
}
