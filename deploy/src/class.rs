//! A stack for each member of a class, in one account: created, handed out and deleted together.
//!
//! Each stack is made by this same program, in a process of its own, so that the output or failure of one does not
//! affect the others.

use std::fs::{self, File, OpenOptions};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use zip::write::SimpleFileOptions;
use zip::{DateTime, ZipWriter};

use crate::cloud::{Cloud, StackName, Target};
use crate::device::{private_folder, write_private};
use crate::models::{self, PUBLISH_ONE};
use crate::ours;
use crate::policy;
use crate::stack::{self, count};

/// The device in each archive; notebook 4 uses it.
const DEVICE: &str = "notebook";
/// What an account may have by default: 1,000 stacks and buckets, 10 requests a second to IoT's control
/// plane. A hundred in one class are well below that.
const MOST: usize = 100;

/// How many, and the folder of their archives.
#[derive(Args)]
pub struct Members {
    /// How many stacks: <STACK>01, <STACK>02, …
    #[arg(long, env = "N", default_value_t = 30)]
    n: usize,
    /// Folder that receives <stack>.zip for each, and logs, instead of the class's own
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many are made or deleted at once
    #[arg(long, env = "JOBS", default_value_t = 6)]
    jobs: usize,
}

/// The file that names the class and the account that a folder belongs to.
const MARK: &str = "class.json";

impl Members {
    /// The class's folder.
    ///
    /// # Errors
    /// When the folder belongs to another class, target, account or region.
    fn folder(&self, cloud: &Cloud) -> Result<PathBuf> {
        let dir = self.dir.clone().unwrap_or_else(|| cloud.folder("class"));
        ensure!(
            ours::file(cloud, &dir.join(MARK))
                || fs::read_dir(&dir).map_or(true, |mut files| files.next().is_none()),
            "folder {} is not that of class {} in account {}, region {}, TARGET={}: it may hold another class's only \
             keys and is left alone; move it away, or give the right TARGET and STACK",
            dir.display(),
            cloud.stack,
            cloud.account,
            cloud.region,
            cloud.target.name()
        );
        Ok(dir)
    }

    /// The same, created if it does not exist.
    fn make_folder(&self, cloud: &Cloud) -> Result<PathBuf> {
        let dir = self.folder(cloud)?;
        private_folder(&dir)?;
        write_private(&dir.join(MARK), format!("{:#}\n", ours::mark(cloud)))?;
        Ok(dir)
    }

    fn stacks(&self, cloud: &Cloud) -> Result<Vec<StackName>> {
        ensure!(
            (1..=MOST).contains(&self.n),
            "a class has 1 to {MOST} stacks: try N=30"
        );
        let name = |i| -> Result<StackName> {
            let name = format!("{}{i:02}", cloud.stack);
            let parsed = name.parse();
            parsed.map_err(|e| anyhow::anyhow!("{name}: {e}"))
        };
        (1..=self.n).map(name).collect()
    }
}

/// Make the class, or the part of it that does not exist yet, with the model of the class's own stack.
pub async fn create(cloud: &Cloud, class: &Members, code: &Path) -> Result<()> {
    let stacks = class.stacks(cloud)?;
    ensure!(
        code.exists(),
        "cannot read {}: run `make build` first",
        code.display()
    );
    policy::ensure_boundary(cloud).await?;
    let model = models::current(cloud).await?.with_context(|| {
        format!(
            "stack {} has no model for its class: {PUBLISH_ONE}",
            cloud.stack
        )
    })?;
    class.folder(cloud)?;
    // Another person's stack of that name is not ours to change, or to delete with the class later.
    for name in &stacks {
        let member = cloud.member(name.clone());
        let Some(there) = stack::describe(&member).await? else {
            continue;
        };
        for there in stack::tagged(&member, there).await? {
            ours::stack(&member, &there)?;
            ensure!(
                stack::class_of(&there) == member.class.as_deref(),
                "stack {name} is there already and not of this class: choose another STACK"
            );
        }
    }
    cloud.confirm(&format!(
        "Make {} with a function and a device each",
        count(stacks.len(), "stack")
    ))?;
    let folder = class.make_folder(cloud)?;
    let file = folder.join("model.json");
    fs::write(&file, model.bytes).with_context(|| format!("cannot write {}", file.display()))?;

    let (all, code, model) = (stacks.len(), Arc::new(code.to_owned()), Arc::new(file));
    let work = stacks.into_iter().map(|name| {
        let (member, dir) = (cloud.member(name), folder.clone());
        let (code, model) = (Arc::clone(&code), Arc::clone(&model));
        async move {
            let stack = member.stack.to_string();
            let made = make(&member, &dir, &code, &model).await;
            made.with_context(|| {
                format!("stack {stack} (all of it in {}/{stack}.log)", dir.display())
            })?;
            Ok(format!("{stack} is ready: {}/{stack}.zip", dir.display()))
        }
    });
    together(class.jobs, all, work).await?;
    println!("hand out one archive each; `make class-destroy` deletes all of it");
    Ok(())
}

/// One member's stack, from the bucket to the archive. What exists already stays.
async fn make(cloud: &Cloud, dir: &Path, code: &Path, model: &Path) -> Result<()> {
    let stack = cloud.stack.to_string();
    let log = dir.join(format!("{stack}.log"));
    File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    ourselves(cloud, &log, &["bucket"]).await?;
    if models::current(cloud).await?.is_none() {
        ourselves(cloud, &log, &["publish", &model.to_string_lossy()]).await?;
    }
    ourselves(cloud, &log, &["up", &code.to_string_lossy()]).await?;
    let devices = dir.join(&stack).join("devices");
    let folder = devices.to_string_lossy();
    ourselves(cloud, &log, &["device", DEVICE, "--dir", &folder]).await?;
    archive(cloud, dir, &devices.join(DEVICE))
}

/// Run this program again for a member's stack, its output into `log`.
async fn ourselves(cloud: &Cloud, log: &Path, arguments: &[&str]) -> Result<()> {
    let output = OpenOptions::new().append(true).open(log)?;
    let status = Command::new(std::env::current_exe().context("where is this program?")?)
        .args(cloud.class.iter().flat_map(|class| ["--class", class]))
        .args(arguments)
        .env("STACK", cloud.stack.to_string())
        // The confirmation for the class counts for all.
        .env("YES", "1")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .status()
        .await?;
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        let reason = text.lines().rfind(|line| line.starts_with("error: "));
        bail!(
            "{}: {}",
            arguments[0],
            reason.unwrap_or("it failed").trim_start_matches("error: ")
        );
    }
    Ok(())
}

/// What a member gets: the device's credentials, and which stack is theirs.
fn archive(cloud: &Cloud, dir: &Path, device: &Path) -> Result<()> {
    let stack = cloud.stack.to_string();
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .last_modified_time(DateTime::default())
        .unix_permissions(0o600);
    for name in ["cert.pem", "key.pem", "ca.pem", "endpoint.json"] {
        let path = cloud.folder("devices").join(DEVICE).join(name);
        zip.start_file_from_path(path, options)?;
        let file = device.join(name);
        zip.write_all(
            &fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?,
        )?;
    }
    zip.start_file("STACK.txt", options)?;
    writeln!(
        zip,
        "Your stack is {stack}. Unpack this at the top of the project; then every command is\n\n    make … STACK={stack}{}\n\nThe key in it is your device's own: keep it to yourself.",
        if cloud.target == Target::Aws {
            " TARGET=aws"
        } else {
            ""
        }
    )?;
    let bytes = zip.finish()?.into_inner();
    write_private(&dir.join(format!("{stack}.zip")), bytes)
}

/// Delete every stack of the class, including those whose creation was interrupted.
pub async fn destroy(cloud: &Cloud, class: &Members) -> Result<()> {
    let folder = class.folder(cloud)?;
    let members = stack::of_class(cloud).await?;
    if members.is_empty() && !folder.exists() {
        println!("nothing of class {} is there", cloud.stack);
        return Ok(());
    }
    println!("to delete, with their devices, models and code:");
    for name in &members {
        println!("  stack {name}");
    }
    println!("  folder {}", folder.display());
    cloud.confirm(&format!("Delete {}", count(members.len(), "stack")))?;
    if !members.is_empty() {
        class.make_folder(cloud)?;
    }
    let all = members.len();
    let work = members.into_iter().map(|name| {
        let (member, dir) = (cloud.member(name), folder.clone());
        async move {
            let stack = member.stack.to_string();
            let log = dir.join(format!("{stack}.log"));
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
            let devices = dir.join(&stack).join("devices");
            ourselves(
                &member,
                &log,
                &["destroy", "--dir", &devices.to_string_lossy()],
            )
            .await
            .with_context(|| format!("stack {stack} (all of it in {})", log.display()))?;
            Ok(format!("{stack} is gone"))
        }
    });
    together(class.jobs, all, work).await?;
    let left = stack::of_class(cloud).await?;
    ensure!(
        left.is_empty(),
        "{} left: run `make class-destroy` again",
        count(left.len(), "stack")
    );
    // Check again, as before everything that is deleted.
    if class.folder(cloud)?.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot delete {}", folder.display()))?;
    }
    println!("nothing of class {} is left", cloud.stack);
    Ok(())
}

/// Run all jobs, `jobs` at a time, with a line for each that is done. One that fails does not stop the others.
async fn together<F>(jobs: usize, all: usize, work: impl Iterator<Item = F>) -> Result<()>
where
    F: Future<Output = Result<String>> + Send + 'static,
{
    let (started, permits) = (Instant::now(), Arc::new(Semaphore::new(jobs.max(1))));
    let mut tasks = JoinSet::new();
    for each in work {
        let permits = Arc::clone(&permits);
        tasks.spawn(async move {
            let _permit = permits
                .acquire()
                .await
                .expect("the semaphore is never closed");
            each.await
        });
    }
    let (mut done, mut failed) = (0, 0);
    while let Some(result) = tasks.join_next().await {
        let seconds = started.elapsed().as_secs_f64();
        match result.context("a task panicked")? {
            Ok(line) => {
                done += 1;
                println!("  {done:>3}/{all}  {seconds:>5.1} s  {line}");
            }
            Err(e) => {
                failed += 1;
                eprintln!("  failed   {seconds:>5.1} s  {e:#}");
            }
        }
    }
    ensure!(
        failed == 0,
        "{failed} of {all} failed: run the same command again, which keeps what is done"
    );
    Ok(())
}
