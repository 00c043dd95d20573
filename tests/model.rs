//! State and log against naive models, with crashes anywhere. The models share no code with what they check.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // tests are the outside world
#![cfg(feature = "sim")]

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn::entry::{Body, Entry, Step as Progress};
use cairn::error::ImportError;
use cairn::ids::{Index, Term};
use cairn::io::Rng;
use cairn::proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest};
use cairn::proto::v1::{self, command::Kind, reply};
use cairn::raft::log::{Change, Log, Write};
use cairn::sim::disk::{PowerCut, SimDisk};
use cairn::sim::mark;
use cairn::state::command;
use cairn::state::kv::Store;
use cairn::state::machine::State;
use cairn::state::snapshot::{self, Import};
use cairn::time::ClusterTime;
use proptest::prelude::*;
use prost::Message as _;
use raft::eraftpb::{Entry as RaftEntry, HardState};

const LOSE_ALL: PowerCut = PowerCut { drop_permille: 1000, tear_permille: 0 };
const LOSE_SOME: PowerCut = PowerCut { drop_permille: 500, tear_permille: 300 };

#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, value: u8, seq: Option<u64> },
    Delete { key: u8, seq: Option<u64> },
    Compact { back: u64, seq: Option<u64> },
    Sweep,
    Checkpoint,
    Crash { seed: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    // Few keys and sequences, so that retries meet.
    let seq = prop::option::weighted(0.5, 1u64..12);
    prop_oneof![
        6 => (0u8..4, any::<u8>(), seq.clone()).prop_map(|(key, value, seq)| Step::Put { key, value, seq }),
        2 => (0u8..4, seq.clone()).prop_map(|(key, seq)| Step::Delete { key, seq }),
        1 => (0u64..4, seq).prop_map(|(back, seq)| Step::Compact { back, seq }),
        1 => Just(Step::Sweep),
        1 => Just(Step::Checkpoint),
        1 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
    ]
}

/// What a store with one session should answer.
#[derive(Clone)]
struct Model {
    rows: BTreeMap<u8, (u8, u64)>,
    revision: u64,
    compacted: u64,
    replies: BTreeMap<u64, Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Put(u64),
    Deleted(bool),
    Compacted(bool),
    Swept,
}

impl Model {
    fn apply(&mut self, step: &Step) -> Answer {
        let seq = match step {
            Step::Put { seq, .. } | Step::Delete { seq, .. } | Step::Compact { seq, .. } => seq,
            _ => &None,
        };
        if let Some(reply) = seq.and_then(|seq| self.replies.get(&seq)) {
            return *reply;
        }
        let answer = match step {
            Step::Put { key, value, .. } => {
                self.revision += 1;
                self.rows.insert(*key, (*value, self.revision));
                Answer::Put(self.revision)
            }
            Step::Delete { key, .. } => {
                let existed = self.rows.remove(key).is_some();
                self.revision += u64::from(existed);
                Answer::Deleted(existed)
            }
            Step::Compact { back, .. } => {
                let fits = *back <= self.revision && self.revision - back > self.compacted;
                self.compacted = if fits { self.revision - back } else { self.compacted };
                Answer::Compacted(fits)
            }
            Step::Sweep => Answer::Swept,
            _ => unreachable!("not a command"),
        };
        if let Some(seq) = seq {
            self.replies.insert(*seq, answer);
        }
        answer
    }
}

/// The command of a step, on a store at `revision`.
fn command(step: &Step, revision: u64) -> Bytes {
    let (kind, seq) = match step {
        Step::Put { key, value, seq } => {
            let put = PutRequest { key: vec![*key].into(), value: vec![*value].into(), ..PutRequest::default() };
            (Kind::Put(put), seq)
        }
        Step::Delete { key, seq } => {
            (Kind::DeleteRange(DeleteRangeRequest { key: vec![*key].into(), ..DeleteRangeRequest::default() }), seq)
        }
        Step::Compact { back, seq } => {
            let revision = revision.saturating_sub(*back) as i64;
            (Kind::Compact(CompactionRequest { revision, physical: false }), seq)
        }
        Step::Sweep => (Kind::SweepVersions(v1::SweepVersions {}), &None),
        _ => unreachable!("not a command"),
    };
    let session = seq.map(|seq| v1::SessionHeader { session: 1, seq, acknowledged: 0 });
    v1::Command { session, ..command::plain("", kind) }.encode_to_vec().into()
}

fn answer(reply: &[u8]) -> Answer {
    match v1::Reply::decode(reply).unwrap().kind.unwrap() {
        reply::Kind::Put(put) => Answer::Put(put.header.unwrap().revision as u64),
        reply::Kind::DeleteRange(delete) => Answer::Deleted(delete.deleted > 0),
        reply::Kind::Compact(_) => Answer::Compacted(true),
        reply::Kind::Rejection(v1::Rejection { kind: Some(v1::rejection::Kind::Keys(_)) }) => Answer::Compacted(false),
        reply::Kind::SweepVersions(_) => Answer::Swept,
        other => panic!("unexpected {other:?}"),
    }
}

fn rows(state: &State) -> BTreeMap<u8, (u8, u64)> {
    let (head, view) = state.reader().view().unwrap();
    let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..RangeRequest::default() };
    let reply = Store::of(&head, &view).range(&all).unwrap();
    reply.kvs.iter().map(|row| (row.key[0], (row.value[0], row.mod_revision as u64))).collect()
}

fn entry(index: u64, body: Body) -> Entry {
    Entry { index: Index(index), term: Term(1), body }
}

fn commands(stamp: u64, commands: Vec<Bytes>) -> Body {
    Body::Commands { stamp: ClusterTime(stamp), commands }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is asked in whatever order, over whatever crashes: the answers and the rows are the model's, the digest
    /// is that of the rows, and a member that applies the same log in other batches has the same digest.
    #[test]
    fn the_state_is_the_models(steps in proptest::collection::vec(step(), 1..60), batch in 1usize..5) {
        let disk = SimDisk::new("disk".into());
        let mut state = State::open(disk.boot(), Index(0)).unwrap();
        let open = command::plain("", Kind::OpenSession(v1::OpenSession::default()));
        let mut log = vec![entry(1, commands(0, vec![open.encode_to_vec().into()]))];
        state.apply(&log).unwrap();
        let mut model = Model { rows: BTreeMap::new(), revision: 1, compacted: 0, replies: BTreeMap::new() };
        for step in &steps {
            match step {
                Step::Checkpoint => state.checkpoint().unwrap(),
                Step::Crash { seed } => {
                    disk.power_cut(LOSE_SOME, &mut Rng::from_seed([*seed as u8; 32]).stream("crash"));
                    let durable = state.durable();
                    drop(state);
                    state = State::open(disk.boot(), Index(0)).unwrap();
                    // It is as of some point since the last checkpoint, and the log brings it back.
                    let at = state.applied().0;
                    prop_assert!(at >= durable, "a checkpoint at {durable} came back as {at}");
                    state.apply(&log[at.0 as usize..]).unwrap();
                }
                command_step => {
                    let command = command(command_step, model.revision);
                    let next = entry(log.len() as u64 + 1, commands(log.len() as u64, vec![command]));
                    let outcomes = state.apply(std::slice::from_ref(&next)).unwrap();
                    log.push(next);
                    prop_assert_eq!(answer(&outcomes[0].replies[0]), model.apply(command_step));
                }
            }
            prop_assert_eq!(rows(&state), model.rows.clone());
        }
        prop_assert_eq!(state.digest(), state.reader().full_digest().unwrap());
        let other_disk = SimDisk::new("other".into());
        let mut other = State::open(other_disk.boot(), Index(0)).unwrap();
        for chunk in log.chunks(batch) {
            other.apply(chunk).unwrap();
        }
        prop_assert_eq!(other.digest(), state.digest());
    }

    /// Commands that go together do and answer what they do one by one, refusals and all.
    #[test]
    fn a_batch_is_its_commands(puts in proptest::collection::vec((0u8..4, any::<u8>(), 0i64..3), 1..20)) {
        let kinds = puts.iter().map(|(key, value, what)| match what {
            0 => Kind::DeleteRange(DeleteRangeRequest { key: vec![*key].into(), ..DeleteRangeRequest::default() }),
            // There is no such lease.
            lease => {
                let put = PutRequest { lease: lease - 1, ..PutRequest::default() };
                Kind::Put(PutRequest { key: vec![*key].into(), value: vec![*value].into(), ..put })
            }
        });
        let bare: Vec<v1::Command> = kinds.map(|kind| command::plain("", kind)).collect();
        let batch = command::plain("", Kind::Batch(v1::CommandBatch { commands: bare.clone() }));
        prop_assert!(command::check(&batch).is_ok());
        let mut answered = Vec::new();
        for given in [bare.iter().map(|command| command.encode_to_vec().into()).collect(), vec![batch.encode_to_vec().into()]] {
            let mut state = State::open(SimDisk::new("disk".into()).boot(), Index(0)).unwrap();
            let outcome = state.apply(&[entry(1, commands(1, given))]).unwrap().remove(0);
            let replies = outcome.replies.iter().map(|reply| v1::Reply::decode(&**reply).unwrap());
            let replies: Vec<v1::Reply> = replies
                .flat_map(|reply| match reply.kind {
                    Some(reply::Kind::Batch(batch)) => batch.replies,
                    _ => vec![reply],
                })
                .collect();
            answered.push((replies, rows(&state), state.digest()));
        }
        prop_assert_eq!(&answered[0], &answered[1]);
    }

    /// A state built from a snapshot is the one that was replayed, on a member that had another one before, and stays so;
    /// a snapshot with one bit changed, or one chunk missing or twice, is never taken for another.
    #[test]
    fn a_snapshot_is_the_state(
        steps in proptest::collection::vec(step(), 1..30),
        chunk_bytes in 1usize..200,
        damage in any::<(prop::sample::Index, prop::sample::Index, u8)>(),
    ) {
        let disk = SimDisk::new("disk".into());
        let mut state = State::open(disk.boot(), Index(0)).unwrap();
        let open = command::plain("", Kind::OpenSession(v1::OpenSession::default()));
        state.apply(&[entry(1, commands(0, vec![open.encode_to_vec().into()]))]).unwrap();
        for step in steps.iter().filter(|step| !matches!(step, Step::Checkpoint | Step::Crash { .. })) {
            let next = state.applied().0.next();
            let revision = state.reader().view().unwrap().0.revision;
            state.apply(&[entry(next.0, commands(next.0, vec![command(step, revision)]))]).unwrap();
        }
        let index = state.applied().0;
        let mut chunks = Vec::new();
        let mut keep = |chunk: &[u8]| {
            chunks.push(chunk.to_vec());
            Ok(())
        };
        snapshot::export(&state.reader(), chunk_bytes, &mut keep).unwrap();

        let other_disk = SimDisk::new("other".into());
        let mounted = other_disk.boot();
        let mut other = State::open(mounted.clone(), Index(0)).unwrap();
        let reader = other.reader();
        let build = |chunks: &[Vec<u8>]| {
            let mut import = Import::begin(mounted.clone(), index).unwrap();
            chunks.iter().try_for_each(|chunk| import.add(chunk))?;
            import.finish(state.digest())
        };
        let mut damaged = chunks.clone();
        let victim = damage.0.index(damaged.len());
        match damage.2 {
            0..100 => {
                damaged.remove(victim);
            }
            100..150 => damaged.insert(victim, damaged[victim].clone()),
            flip => {
                let at = damage.1.index(damaged[victim].len());
                damaged[victim][at] ^= 1 << (flip % 8);
            }
        }
        match build(&damaged) {
            Err(ImportError::Invalid(_)) => {}
            Err(ImportError::Fault(fault)) => prop_assert!(false, "damage stopped the node: {fault}"),
            // A flipped bit may hit what means nothing.
            Ok(()) => prop_assert!(damage.2 >= 150, "damage passed"),
        }
        build(&chunks).unwrap();
        other.install(index).unwrap();
        prop_assert_eq!(rows(&other), rows(&state));
        prop_assert_eq!((other.applied(), other.digest()), (state.applied(), state.digest()));
        prop_assert_eq!(reader.full_digest().unwrap(), state.digest(), "a reader from before reads the old state");
        drop((reader, other));
        other_disk.power_cut(LOSE_ALL, &mut Rng::from_seed([1; 32]).stream("crash"));
        let after = State::open(other_disk.boot(), index).unwrap();
        prop_assert_eq!((after.applied(), after.digest()), (state.applied(), state.digest()));
    }

    /// A state that is written anew while it changes is the one that is not, also after power cuts at any time.
    #[test]
    fn a_state_written_anew_is_the_state(
        steps in proptest::collection::vec((step(), 0usize..6, prop::option::weighted(0.3, 0u64..40)), 1..40),
        step_bytes in 1usize..3000,
    ) {
        let disk = SimDisk::new("disk".into());
        let (mut mounted, mut plain) = (disk.boot(), State::open(SimDisk::new("other".into()).boot(), Index(0)).unwrap());
        let mut state = State::open(mounted.clone(), Index(0)).unwrap();
        let mut defragmenter = state.defragmenter();
        let open = command::plain("", Kind::OpenSession(v1::OpenSession::default()));
        let mut log = vec![entry(1, commands(0, vec![open.encode_to_vec().into()]))];
        plain.apply(&log).unwrap();
        state.apply(&log).unwrap();
        for (step, times, mut goes_after) in steps {
            let mut crash = None;
            match step {
                Step::Checkpoint => state.checkpoint().unwrap(),
                Step::Crash { seed } => crash = Some(seed),
                step => {
                    let next = state.applied().0.next();
                    let revision = state.reader().view().unwrap().0.revision;
                    log.push(entry(next.0, commands(next.0, vec![command(&step, revision)])));
                    plain.apply(&log[next.0 as usize - 1..]).unwrap();
                    state.apply(&log[next.0 as usize - 1..]).unwrap();
                }
            }
            let mut reader = state.reader();
            for _ in 0..times {
                match defragmenter.step(step_bytes).unwrap() {
                    Progress::More => {}
                    Progress::Whole => {
                        // The power may go in the middle.
                        let goes = goes_after.take();
                        goes.into_iter().for_each(|operations| disk.cut_after(operations));
                        match state.go_over() {
                            Ok(Progress::Whole) => {}
                            result => prop_assert!(goes.is_some(), "{result:?}"),
                        }
                        crash = crash.or(goes);
                        if goes.is_some() {
                            break;
                        }
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            if let Some(seed) = crash {
                let before = state.durable();
                drop((reader, state, defragmenter));
                disk.power_cut(LOSE_SOME, &mut Rng::from_seed([seed as u8; 32]).stream("crash"));
                mounted = disk.boot();
                state = State::open(mounted.clone(), Index(0)).unwrap();
                prop_assert_eq!(mounted.list().unwrap().len(), 1, "what was not finished is gone");
                let found = state.applied().0;
                prop_assert!(found >= before, "{found} is applied, {before} was durable");
                state.apply(&log[found.0 as usize..]).unwrap();
                defragmenter = state.defragmenter();
                reader = state.reader();
            }
            prop_assert_eq!(rows(&state), rows(&plain));
            prop_assert_eq!((state.applied(), state.digest()), (plain.applied(), plain.digest()));
            prop_assert_eq!(reader.full_digest().unwrap(), plain.digest(), "a reader from before reads another state");
        }
    }

    /// What the log was told to keep it has after any crash; a suffix that was replaced never comes back.
    #[test]
    fn the_log_is_the_models(
        writes in proptest::collection::vec((0u64..6, 1u64..6, 1u64..3, any::<bool>(), any::<u8>()), 1..40),
    ) {
        let disk = SimDisk::new("disk".into());
        let mut log = Log::open(&*disk.boot()).unwrap();
        // What follows `compacted`.
        let mut model: Vec<(u64, u8)> = Vec::new();
        let (mut compacted, mut installed) = ((0, 0), 0);
        let mut hard_state = HardState::default();
        for (number, (back, count, newer, crash, byte)) in writes.into_iter().enumerate() {
            hard_state.term += newer;
            hard_state.vote = u64::from(byte) % 3;
            let last = compacted.0 + model.len() as u64;
            let mut snapshot = None;
            match byte % 8 {
                0 if !model.is_empty() => {
                    let forget = (back as usize).clamp(1, model.len());
                    compacted = (compacted.0 + forget as u64, model[forget - 1].0);
                    model.drain(..forget);
                    log.write(&[Change::Compact(Index(compacted.0), Term(compacted.1))]).unwrap();
                }
                1 => {
                    // A snapshot takes the place of everything, also of entries beyond it.
                    compacted = (last + back, hard_state.term);
                    installed = compacted.0;
                    model.clear();
                    snapshot = Some((Index(compacted.0), Term(compacted.1)));
                }
                // A leader of a later term replaces up to `back` entries at the end and adds `count`.
                _ => model.truncate(model.len() - (back as usize).min(model.len())),
            }
            let first = compacted.0 + model.len() as u64 + 1;
            model.extend((0..count).map(|_| (hard_state.term, byte)));
            let entries: Vec<RaftEntry> = (first..first + count)
                .map(|index| {
                    let mut entry = RaftEntry::default();
                    (entry.index, entry.term) = (index, hard_state.term);
                    entry.data = vec![byte].into();
                    entry
                })
                .collect();
            let write = Write { number: number as u64, snapshot, entries, hard_state: hard_state.clone() };
            log.write(&[Change::Write(write)]).unwrap();
            if crash {
                let fate = if byte % 2 == 0 { LOSE_ALL } else { LOSE_SOME };
                disk.power_cut(fate, &mut Rng::from_seed([byte; 32]).stream("crash"));
                drop(log);
                log = Log::open(&*disk.boot()).unwrap();
                let found = log.recover().unwrap();
                let kept: Vec<(u64, u8)> = found.entries.iter().map(|entry| (entry.term, entry.data[0])).collect();
                prop_assert_eq!(&kept, &model);
                prop_assert_eq!(found.compacted, (Index(compacted.0), Term(compacted.1)));
                prop_assert_eq!(log.installed().unwrap(), Index(installed));
                prop_assert_eq!(found.hard_state, hard_state.clone());
            }
        }
        let all = log.read(Index(1), Index(u64::MAX), u64::MAX).unwrap();
        prop_assert_eq!(all.len(), model.len());
    }
}

#[test]
fn a_restart_is_counted_before_anything_is_said() {
    let disk = SimDisk::new("disk".into());
    for life in 1..5 {
        let mut log = Log::open(&*disk.boot()).unwrap();
        assert_eq!(log.recover().unwrap().incarnation.0, life);
        disk.power_cut(LOSE_ALL, &mut Rng::from_seed([0; 32]).stream("crash"));
    }
}

/// The power goes in the middle of the first start of a member, at any operation of its disk: what is left can be opened, and
/// what was acknowledged is there.
#[test]
fn a_first_start_that_is_cut_short_leaves_what_can_be_started() {
    let mut anew = 0;
    for operations in 0..80 {
        for seed in 0..12 {
            let disk = SimDisk::new("disk".into());
            let mut rng = Rng::from_seed([seed; 32]).stream("cut");
            let mounted = disk.boot();
            disk.cut_after(operations);
            let first = Log::open(&*mounted).and_then(|mut log| log.uuid(|| ([7; 16], 7)));
            let state = first.is_ok().then(|| State::open(mounted.clone(), Index(0)));
            disk.power_cut(LOSE_SOME, &mut rng);
            drop(state);
            mark::take();
            let mounted = disk.boot();
            let mut log = Log::open(&*mounted).unwrap();
            let uuid = log.uuid(|| ([8; 16], 8)).unwrap();
            assert!(first.is_err() || uuid == [7; 16], "an acknowledged write is gone after {operations} operations");
            State::open(mounted, log.installed().unwrap()).unwrap();
            anew +=
                mark::take().get("a database whose making was cut short was made anew").copied().unwrap_or_default();
        }
    }
    assert!(anew > 0, "nothing was cut short where it matters");
}

/// Rows in another layout would be read as damage, or as what they are not.
#[test]
fn a_state_of_another_version_is_refused_and_left_as_it_is() {
    const HEAD: redb::TableDefinition<'static, (), &[u8]> = redb::TableDefinition::new("head");
    let disk = SimDisk::new("disk".into());
    drop(State::open(disk.boot(), Index(0)).unwrap());
    let head = v1::Head { applied_index: 7, rows_digest: 5, ..v1::Head::default() }.encode_to_vec();
    let open = || {
        let file = disk.boot().open("state-0.redb").unwrap();
        redb::Builder::new().create_with_backend(file).unwrap()
    };
    let db = open();
    let txn = db.begin_write().unwrap();
    txn.open_table(HEAD).unwrap().insert((), &*head).unwrap();
    txn.commit().unwrap();
    drop(db);
    let refused = State::open(disk.boot(), Index(0)).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("a version before all formats"), "{refused}");
    let db = open();
    let txn = redb::ReadableDatabase::begin_read(&db).unwrap();
    assert_eq!(txn.open_table(HEAD).unwrap().get(()).unwrap().unwrap().value(), &*head);
}
