//! What clients do while the members are attacked: the simulator's load on keys, and tasks.
//!
//! A task's program is a script that takes a lock and writes to a ledger, both outside of what any node knows. Two live
//! attempts at one task meet at the lock: the second finds it busy and says so. Only the script's own shell holds the lock,
//! so what it started and what ends a moment later cannot be mistaken for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn::client::Client;
use cairn::ids::{Address, TaskId, Token};
use cairn::io::{Io, Rng, RngStream};
use cairn::proto::v1::{EnvVar, Resources, TaskSpec};
use cairn::sim::cluster::CLIENT_TIMEOUT;
use cairn::sim::door::{Door, Etcd};
use cairn::sim::fault::Place;
use cairn::sim::history::{History, Op, Record, Seen};
use cairn::sim::json;
use cairn::sim::load::{self, Ask, FIRST_READER, Load, Notes, READER_TIMEOUT};
use cairn::sim::oracle::Violations;
use cairn::sim::oracle::attempts::Ledger;
use cairn::sim::tasks::{self, MARK, Submissions, Submitter};
use cairn::sim::watchers::Watchers;
use tokio::task::JoinHandle;

use super::plan::Plan;

/// The number of the client that sees whether a healed cluster serves.
const LAST_CLIENT: u64 = 99;
/// How long a client that only reads pauses between two questions, at least sometimes.
const READER_PAUSE: Duration = Duration::from_millis(60);
/// What a task runs: `sh task.sh STATUS SECONDS plain|stubborn`.
const SCRIPT: &str = r#"code=$1
say() { echo "$1 $CAIRN_TASK_ID $CAIRN_TASK_TOKEN $CAIRN_WORKER $code" >> "$dir/ledger"; }
[ "$3" = stubborn ] && trap '' TERM
exec 9>> "$dir/lock-$CAIRN_TASK_ID"
flock -n 9 || { say busy; exit 75; }
say begin
sleep "$2" 9>&-
say end
exit "$code"
"#;

/// The clients of a run, and what they saw.
pub struct Work {
    /// What clients did on keys.
    pub history: Arc<History>,
    /// What they submitted.
    pub submissions: Arc<Submissions>,
    /// What those were told who watch the keys.
    pub watchers: Arc<Watchers>,
    io: Io,
    endpoints: Vec<Address>,
    rng: Rng,
    dir: PathBuf,
    began: Instant,
}

impl Work {
    /// Clients of the members there, whose clock is the time since `began`; what tasks need is put into `dir`.
    pub fn new(io: Io, endpoints: Vec<Address>, rng: Rng, dir: &Path, began: Instant) -> Result<Self, String> {
        let script = format!("dir='{}'\n{SCRIPT}", dir.display().to_string().replace('\'', r"'\''"));
        let path = dir.join("task.sh");
        std::fs::write(&path, script).map_err(|error| format!("write {}: {error}", path.display()))?;
        let (history, submissions, watchers) = Default::default();
        Ok(Self { history, submissions, watchers, io, endpoints, rng, dir: dir.to_path_buf(), began })
    }

    /// A client of all members.
    pub fn client(&self, timeout: Duration) -> Client {
        Client::new(self.io.clone(), &self.endpoints, timeout)
    }

    /// Starts all clients of a plan. They end by themselves.
    pub fn start(&self, plan: &Plan) -> Vec<JoinHandle<()>> {
        let (one, until) = (self.client(CLIENT_TIMEOUT), self.began.elapsed() + plan.length);
        let clients = (1..=plan.clients).map(|id| {
            let door = match id {
                _ if id <= plan.sharing => Door::Own(one.clone()),
                // Every third of the others speaks the protocol of etcd's clients.
                _ if id % 3 == 0 => {
                    let io = json::every_other(id, self.io.clone());
                    Door::Etcd(Etcd::new(io, &self.endpoints, CLIENT_TIMEOUT))
                }
                _ => Door::Own(self.client(CLIENT_TIMEOUT)),
            };
            let rng = self.rng.stream(&format!("real/client {id}"));
            let (history, load, began) = (self.history.clone(), plan.load, self.began);
            let value_bytes = plan.value_bytes;
            tokio::spawn(async move {
                let (elapsed, goes_on) = (|| began.elapsed(), || began.elapsed() < until);
                let ended = |record| history.add(record);
                let notes = Notes { client: id, value_bytes, elapsed: &elapsed, ended: &ended };
                load::run(&door, &load, rng, &goes_on, notes).await;
            })
        });
        let submitters = (1..=plan.submitters).map(|id| {
            let (client, submissions) = (self.client(CLIENT_TIMEOUT), self.submissions.clone());
            let rng = self.rng.stream(&format!("real/submitter {id}"));
            let (script, began) = (self.dir.join("task.sh"), self.began);
            tokio::spawn(async move {
                let submitter = Submitter {
                    id,
                    goes_on: &|_| began.elapsed() < until,
                    draw: &|rng, mark| draw_spec(rng, mark, &script),
                    tell: &|_| {},
                    stopped: &|_| {},
                };
                tasks::submit_each(&client, submitter, rng, &submissions).await;
            })
        });
        for from in [0, 1] {
            let (watchers, client, keys) = (self.watchers.clone(), self.client(CLIENT_TIMEOUT), plan.load.keys);
            tokio::spawn(async move { watchers.watch(&client, keys, from).await });
        }
        let readers = (0..self.endpoints.len()).map(|place| tokio::spawn(self.reader(place, plan.load, until)));
        clients.chain(submitters).chain(readers).collect()
    }

    /// Reads from one member alone.
    fn reader(&self, place: Place, load: Load, until: Duration) -> impl Future<Output = ()> + use<> {
        let door = Door::Own(Client::new(self.io.clone(), &self.endpoints[place..=place], READER_TIMEOUT));
        let rng = self.rng.stream(&format!("real/reader {place}"));
        let (history, began) = (self.history.clone(), self.began);
        let pause = (2 * load.pause).max(READER_PAUSE);
        async move {
            let (elapsed, goes_on) = (|| began.elapsed(), || began.elapsed() < until);
            let (id, what) = (FIRST_READER + place as u64, (load.keys, pause));
            let ended = |record| history.add(record);
            load::read(
                &door,
                what,
                rng,
                &goes_on,
                Notes { client: id, value_bytes: 0, elapsed: &elapsed, ended: &ended },
            )
            .await;
        }
    }

    /// Reads and writes every key; what did not end well, if anything did not.
    pub async fn serve(&self, keys: u64, patience: Duration) -> Result<(), String> {
        let door = Door::Own(self.client(patience));
        let (elapsed, ended) = (|| self.began.elapsed(), |record| self.history.add(record));
        let notes = Notes { client: LAST_CLIENT, value_bytes: 0, elapsed: &elapsed, ended: &ended };
        for key in 0..keys {
            for op in [Op::Get, Op::Put { value: (LAST_CLIENT << 32) | key, expected: None }, Op::Get] {
                for Record { seen, .. } in notes.perform(&door, Ask::One(key, op)).await {
                    if matches!(seen, Seen::Unknown | Seen::NotDone) {
                        return Err(format!("{op:?} on key {key}: {seen:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// What really ran, by what the tasks themselves wrote.
    pub fn ledger(&self) -> Result<Ledger, String> {
        let path = self.dir.join("ledger");
        match std::fs::read_to_string(&path) {
            Ok(text) => read_ledger(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Ledger::default()),
            Err(error) => Err(format!("read {}: {error}", path.display())),
        }
    }
}

fn draw_spec(rng: &mut RngStream, mark: u64, script: &Path) -> TaskSpec {
    // Some outlive the lease of a worker that stands still.
    let millis = *rng.pick(&[50, 500, 3_000, 8_000, 20_000]);
    let millis = rng.range(millis / 2, millis);
    let code = u64::from(rng.chance(200));
    let manner = if rng.chance(200) { "stubborn" } else { "plain" };
    let program = if rng.chance(30) { "no-such-program" } else { "sh" };
    let seconds = format!("{}.{:03}", millis / 1_000, millis % 1_000);
    TaskSpec {
        command: vec![program.into(), script.display().to_string(), code.to_string(), seconds, manner.into()],
        env: vec![EnvVar { name: MARK.into(), value: mark.to_string() }],
        resources: Some(Resources {
            cpu_milli: rng.range(50, 400),
            memory_bytes: rng.range(1, 100) << 20,
            disk_bytes: 0,
        }),
        timeout_ms: if rng.chance(200) { rng.range(100, 5_000) } else { 0 },
        retries: rng.range(0, 3) as u32,
        kill_grace_ms: rng.range(100, 3_000),
        ..TaskSpec::default()
    }
}

/// Enters what tasks wrote into the simulator's ledger. An attempt that was killed says nothing of its end: that the next one
/// got the lock does.
fn read_ledger(text: &str) -> Result<Ledger, String> {
    let ledger = Ledger::default();
    for line in text.lines() {
        let strange = || format!("the ledger has a strange line: {line}");
        let (what, numbers) = line.split_once(' ').ok_or_else(strange)?;
        let numbers: Result<Vec<u64>, _> = numbers.split(' ').map(str::parse).collect();
        let [task, token, worker, code] = numbers.map_err(|_| strange())?[..] else { return Err(strange()) };
        let (task, token) = (TaskId(task), Token(token));
        match what {
            "begin" => {
                let before = ledger.live().into_iter().find(|(live, ..)| *live == task);
                if let Some((_, before, _)) = before {
                    ledger.end(task, before, None);
                }
                let again = before.is_some_and(|(_, before, _)| before == token);
                // How much its worker has is not known here, nor how much of that runs: what was killed does not say when.
                let nothing = Resources::default();
                ledger.begin(task, token, (worker, &nothing), nothing, again);
            }
            "end" => ledger.end(task, token, Some(code as i32)),
            "busy" => {
                let what = format!("attempt {token} of task {task} began on worker {worker} while another ran");
                ledger.violations.add("one live attempt per task", what);
            }
            _ => return Err(strange()),
        }
    }
    Ok(ledger)
}

/// What the ledger noticed, for a verdict.
pub fn judge(ledger: &Ledger, violations: &Violations) {
    for violation in ledger.violations.all() {
        violations.add(violation.oracle, violation.what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oracles(text: &str) -> Vec<&'static str> {
        read_ledger(text).unwrap().violations.all().iter().map(|violation| violation.oracle).collect()
    }

    #[test]
    fn the_ledger_shows_what_must_not_be() {
        let fine = "begin 1 1 2 0\nend 1 1 2 0\nbegin 1 2 3 0\nbegin 2 3 1 1\nbegin 1 4 2 0\nend 1 4 2 0\n";
        assert!(oracles(fine).is_empty());
        assert_eq!(read_ledger(fine).unwrap().ended_with(TaskId(1), 0), 2);
        assert_eq!(oracles("begin 1 1 2 0\nbusy 1 2 3 0\n"), ["one live attempt per task"]);
        assert_eq!(oracles("begin 1 2 2 0\nend 1 2 2 0\nbegin 1 1 3 0\n"), ["tokens grow"]);
        assert!(oracles("begin 1 1 2 0\nbegin 1 1 2 0\n").contains(&"an attempt is started once"));
        assert!(read_ledger("begin 1\n").is_err());
    }
}
