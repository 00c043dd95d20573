//! Faults of a cluster: what each does to members, links, disks and clocks, how long it lasts, and that it ends.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn::client::Client;
use cairn::ids::NodeId;
use cairn::io::Io;
use cairn::limits::{APPLY_JOBS_MAX, SESSION_ANSWER_BYTES_MAX, WORKER_RENEWAL};
use cairn::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use cairn::proto::etcdserverpb::request_op::Request;
use cairn::proto::etcdserverpb::{Compare, PutRequest, RequestOp, TxnRequest};
use cairn::raft::core::Flow;
use cairn::sim::clock::FROZEN_PPM;
use cairn::sim::cluster::Cluster;
use cairn::sim::disk::{Damage, DiskOp, Files, PowerCut};
use cairn::sim::fault::{Fault, Links, Place};
use cairn::sim::mark;
use cairn::sim::plan::Plan;
use cairn::sim::watch::Watch;
use cairn::sim::world::World;
use futures_util::future::join_all;
use madsim::time::sleep;
use redb::StorageBackend;

use super::{now, simulate};

const SECOND: Duration = Duration::from_secs(1);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(5);
/// How long is looked after a fault has ended.
const AFTER: Duration = Duration::from_secs(15);
/// A fault that changes nothing.
const NOTHING: Fault = Fault::WallStep { node: 1, millis: 0 };
const KEPT: PowerCut = PowerCut { drop_permille: 0, tear_permille: 0 };

/// A cluster before a fault, with or without nodes on its machines.
async fn cluster(world: Arc<World>, plan: Plan, forms: bool) -> Arc<Cluster> {
    let watch = Watch::new(world.trace.clone());
    let cluster = Cluster::new(world, plan, watch);
    if forms {
        let plan = &cluster.plan;
        plan.places().for_each(|place| cluster.boot(place));
        let most = plan.places().filter(|place| *place < plan.nodes && !plan.is_late(*place)).count();
        let voters = most - usize::from(most.is_multiple_of(2));
        until(|| cluster.watch.leader().is_some() && cluster.watch.voters().is_some_and(|now| now.len() == voters))
            .await;
        until(|| cluster.members[plan.nodes..].iter().all(|worker| worker.id().is_some())).await;
        sleep(SECOND).await;
    }
    cluster
}

async fn until(holds: impl Fn() -> bool) {
    for _ in 0..60 * 200 {
        if holds() {
            return;
        }
        sleep(LOOK).await;
    }
    panic!("not within a minute");
}

/// What is seen of a cluster through a fault and after it: each look that differs from the one before, and for how long it
/// stayed so.
fn through<T: PartialEq + Debug + Send + 'static>(
    plan: &Plan,
    fault: Fault,
    forms: bool,
    look: impl Fn(&Arc<Cluster>) -> T + Send + 'static,
) -> Vec<(T, Duration)> {
    let plan = Plan { faults: vec![(Duration::ZERO, fault)], ..plan.clone() };
    simulate(move |world| async move {
        let cluster = cluster(world, plan, forms).await;
        let faulty = madsim::task::spawn(cluster.inflict(fault));
        sleep(Duration::from_millis(1)).await;
        let mut seen = vec![(look(&cluster), now())];
        let mut left = AFTER;
        while !left.is_zero() {
            sleep(LOOK).await;
            left = if faulty.is_finished() { left.saturating_sub(LOOK) } else { AFTER };
            let look = look(&cluster);
            if seen.last().is_none_or(|(last, _)| *last != look) {
                seen.push((look, now()));
            }
        }
        cluster.world.network.set_wiretap(None);
        assert_eq!(cluster.watch.violations.all(), [], "{fault:?}");
        let ends: Vec<Duration> = seen.iter().skip(1).map(|(_, at)| *at).chain([now()]).collect();
        seen.into_iter().zip(ends).map(|((look, began), ended)| (look, ended - began)).collect()
    })
}

/// Asserts what is seen one after another, and for how long; for whatever time at the end.
#[track_caller]
fn assert_seen<T: PartialEq + Debug>(seen: &[(T, Duration)], expected: &[(T, Duration)]) {
    let near = |one: Duration, other: Duration| one.abs_diff(other) <= 4 * LOOK;
    let is_so = seen.len() == expected.len()
        && seen.iter().zip(expected).all(|((one, _), (other, _))| one == other)
        && seen.iter().zip(expected).rev().skip(1).all(|((_, one), (_, other))| near(*one, *other));
    assert!(is_so, "{seen:#?}, and not {expected:#?}");
}

/// The links that are cut, by places.
fn cuts(cluster: &Arc<Cluster>) -> Vec<(Place, Place)> {
    let place = |id| cluster.members.iter().position(|member| member.machine.id == id).unwrap();
    cluster.world.network.cuts().into_iter().map(|(from, to)| (place(from), place(to))).collect()
}

/// All links between two sets of places.
fn between(these: &[Place], those: &[Place]) -> Vec<(Place, Place)> {
    let pairs = these.iter().flat_map(|one| those.iter().flat_map(move |other| [(*one, *other), (*other, *one)]));
    let mut pairs: Vec<(Place, Place)> = pairs.collect();
    pairs.sort_unstable();
    pairs
}

fn leader(cluster: &Cluster) -> Option<Place> {
    let id = cluster.watch.leader()?;
    cluster.members.iter().position(|member| member.id() == Some(id))
}

fn ups<const N: usize>(cluster: &Arc<Cluster>) -> [bool; N] {
    std::array::from_fn(|place| cluster.members[place].machine.is_up())
}

#[test]
fn links_are_cut_as_they_are_to_be_and_no_others() {
    let span = 2 * SECOND;
    for (links, cut) in [
        (Links::OneWay { from: 1, to: 3 }, vec![(1, 3)]),
        (Links::Isolate { node: 1 }, between(&[1], &[0, 2, 3, 4])),
        (Links::Halves { these: 0b00110 }, between(&[1, 2], &[0, 3, 4])),
        (Links::Bridge { these: 0b00110, middle: 2 }, between(&[1], &[0, 3, 4])),
        (Links::Bridge { these: 0b00110, middle: 4 }, between(&[1, 2], &[0, 3])),
    ] {
        let seen = through(&Plan::quiet(5), Fault::Cut { links, span }, false, cuts);
        assert_seen(&seen, &[(cut, span), (vec![], SECOND)]);
    }
}

#[test]
fn a_link_that_flaps_comes_and_goes_for_its_span() {
    let links = Links::Flap { one: 1, other: 2, period: SECOND };
    let seen = through(&Plan::quiet(3), Fault::Cut { links, span: 5 * SECOND / 2 }, false, cuts);
    let cut = between(&[1], &[2]);
    assert_seen(&seen, &[(cut.clone(), SECOND), (vec![], SECOND), (cut, SECOND / 2), (vec![], SECOND)]);
}

#[test]
fn members_are_cut_off_one_after_another_and_come_back_from_the_last() {
    let links = Links::Swizzle { these: 0b1011 };
    let seen = through(&Plan::quiet(4), Fault::Cut { links, span: 6 * SECOND }, false, |cluster| cuts(cluster).len());
    // One of four has six links, two have ten between them, and three have all.
    let expected = [(6, SECOND), (10, SECOND), (12, 2 * SECOND), (10, SECOND), (6, SECOND), (0, SECOND)];
    assert_seen(&seen, &expected);
}

#[test]
fn the_leader_of_the_time_is_cut_off_or_deaf() {
    let span = 8 * SECOND;
    for (links, deaf) in [(Links::Leader, false), (Links::LeaderDeaf, true)] {
        let seen =
            through(&Plan::quiet(3), Fault::Cut { links, span }, true, |cluster| (leader(cluster), cuts(cluster)));
        let ((Some(first), cut), _) = &seen[0] else { panic!("{seen:?}") };
        let others: Vec<Place> = (0..3).filter(|place| place != first).collect();
        let mut expected = between(&[*first], &others);
        expected.retain(|(_, to)| !deaf || to == first);
        assert_eq!(*cut, expected, "{links:?}");
        // Another leads meanwhile, and the links stay those of the first until the end.
        let cut_for: Duration = seen.iter().take_while(|((_, cuts), _)| cuts == cut).map(|(_, span)| *span).sum();
        assert!(cut_for.abs_diff(span) <= 4 * LOOK, "{links:?}: {seen:?}");
        assert!(seen.iter().any(|((now, cuts), _)| now.is_some_and(|now| now != *first) && cuts == cut), "{seen:?}");
        assert_eq!(seen.last().unwrap().0.1, []);
    }
}

#[test]
fn machines_go_off_and_come_back() {
    let (node, down) = (1, 2 * SECOND);
    let long = SECOND;
    let off = |gone: &[Place]| std::array::from_fn::<bool, 3, _>(|place| !gone.contains(&place));
    let once = vec![(off(&[1]), down), (off(&[]), long)];
    let storm = |times: usize| [(off(&[1]), down), (off(&[]), down)].repeat(times);
    for (fault, expected) in [
        (Fault::Kill { node, down }, once.clone()),
        (Fault::Power { node, cut: KEPT, down }, once),
        (Fault::Storm { node, times: 3, down }, storm(3)),
        (
            Fault::Blackout { cut: KEPT, down, gone: None, after_joint: None },
            vec![(off(&[0, 1, 2]), down), (off(&[]), long)],
        ),
        (
            Fault::Blackout { cut: KEPT, down, gone: Some(2), after_joint: None },
            vec![(off(&[0, 1, 2]), down), (off(&[2]), long)],
        ),
    ] {
        let seen = through(&Plan::quiet(3), fault, true, ups::<3>);
        assert_seen(&seen, &expected);
    }
}

#[test]
fn the_disk_of_a_machine_that_recovers_goes_again() {
    let (node, down) = (1, 2 * SECOND);
    let fault = Fault::Recovery { node, cut: KEPT, operations: 40, down };
    let seen = through(&Plan::quiet(3), fault, true, |cluster| ups::<3>(cluster)[1]);
    let states: Vec<bool> = seen.iter().map(|(up, _)| *up).collect();
    assert_eq!(states, [false, true, false, true]);
    assert!(
        seen[1].1 < SECOND && [&seen[0], &seen[2]].iter().all(|(_, off)| off.abs_diff(down) <= 4 * LOOK),
        "{seen:?}"
    );
}

#[test]
fn a_node_that_is_stopped_has_ended_when_its_machine_goes_off() {
    for exits in [true, false] {
        let fault = Fault::Stop { node: 1, exits, down: 2 * SECOND };
        let seen = through(&Plan::quiet(3), fault, true, |cluster| ups::<3>(cluster)[1]);
        let states: Vec<bool> = seen.iter().map(|(up, _)| *up).collect();
        assert_eq!(states, [true, false, true], "exits: {exits}");
        assert!(seen[1].1 >= 2 * SECOND, "{seen:?}");
    }
}

#[test]
fn a_process_that_exits_has_closed_its_state() {
    for exits in [true, false] {
        let marks = simulate(move |world| async move {
            let cluster = cluster(world, Plan::quiet(3), true).await;
            mark::take();
            cluster.inflict(Fault::Stop { node: 1, exits, down: SECOND }).await;
            sleep(5 * SECOND).await;
            cluster.world.network.set_wiretap(None);
            mark::take()
        });
        let opened = ["a state was opened that had been closed", "a state was opened that had not been closed"];
        assert_eq!(opened.map(|mark| marks.contains_key(mark)), [exits, !exits]);
    }
}

#[test]
fn a_member_moves_to_another_address() {
    let fault = Fault::Move { node: 1, down: 2 * SECOND };
    let look = |cluster: &Arc<Cluster>| {
        let member = &cluster.members[1];
        (ups::<3>(cluster)[1], member.addresses().position(|address| address == member.address()))
    };
    let seen = through(&Plan::quiet(3), fault, true, look);
    assert_seen(&seen, &[((false, Some(1)), 2 * SECOND), ((true, Some(1)), SECOND)]);
}

#[test]
fn a_machine_is_replaced_by_one_that_is_another_member() {
    let fault = Fault::Replace { node: 1, down: 2 * SECOND };
    let look = |cluster: &Arc<Cluster>| (ups::<3>(cluster)[1], cluster.members[1].id(), cluster.watch.voters());
    let seen = through(&Plan::quiet(3), fault, true, look);
    let before = through(&Plan::quiet(3), NOTHING, true, look);
    let first = before[0].0.1.unwrap();
    let (up, second, voters) = seen.last().unwrap().0.clone();
    assert!(!seen[0].0.0, "{seen:?}");
    assert!(up && second.is_some_and(|second| second != first), "{seen:?}");
    assert!(voters.as_ref().is_some_and(|voters| voters.len() == 3 && !voters.contains(&first)), "{seen:?}");
}

#[test]
fn pages_of_a_rotten_disk_are_damaged_and_its_machine_is_replaced() {
    let rot = Fault::Rot {
        node: 1,
        damage: Damage::Flipped,
        files: Files::All,
        permille: 1_000,
        stopped: false,
        down: 2 * SECOND,
    };
    let rotten = simulate(move |world| async move {
        let cluster = cluster(world, Plan::quiet(3), true).await;
        for number in 0..200_u64 {
            cluster.operator.put(&number.to_be_bytes(), &[1; 2_000], None).await.unwrap();
        }
        let member = cluster.members[1].clone();
        let first = member.id();
        let faulty = madsim::task::spawn(cluster.inflict(rot));
        sleep(SECOND).await;
        assert!(member.is_rotten() && !member.machine.is_up());
        let rotten = member.machine.disk.counts().rotten;
        faulty.await.unwrap();
        until(|| !member.is_rotten() && member.id().is_some_and(|id| Some(id) != first)).await;
        cluster.world.network.set_wiretap(None);
        rotten
    });
    assert!(rotten > 100, "of 400 kB, {rotten} pages");
}

#[test]
fn leadership_goes_where_it_is_to_go() {
    let first = through(&Plan::quiet(3), NOTHING, true, |cluster| leader(cluster))[0].0;
    let to = (first.unwrap() + 1) % 3;
    let seen = through(&Plan::quiet(3), Fault::Transfer { to }, true, |cluster| leader(cluster));
    assert_eq!(seen.iter().map(|(leader, _)| *leader).collect::<Vec<_>>(), [first, Some(to)]);
}

#[test]
fn a_leader_that_stands_still_stays_up_and_another_leads() {
    let first = through(&Plan::quiet(3), NOTHING, true, |cluster| leader(cluster))[0].0;
    let fault = Fault::Pause { node: first.unwrap(), span: 10 * SECOND };
    let seen = through(&Plan::quiet(3), fault, true, |cluster| (leader(cluster), ups::<3>(cluster)));
    assert!(seen.len() > 1 && seen.iter().all(|(look, _)| look.1 == [true; 3]), "{seen:?}");
}

#[test]
fn members_come_and_are_removed() {
    let voters_of = |cluster: &Arc<Cluster>| {
        let voters = cluster.watch.voters().unwrap_or_default();
        let is_voter = |id: Option<NodeId>| id.is_some_and(|id| voters.contains(&id));
        cluster.members.iter().map(|member| is_voter(member.id())).collect::<Vec<bool>>()
    };
    let gone = |cluster: &Arc<Cluster>| cluster.members.iter().map(|member| member.is_removed()).collect::<Vec<bool>>();
    let look = move |cluster: &Arc<Cluster>| (voters_of(cluster), gone(cluster), leader(cluster));
    let last = |fault| through(&Plan::quiet(4), fault, true, look).pop().unwrap().0;
    let (_, _, Some(first)) = through(&Plan::quiet(4), NOTHING, true, look)[0].0 else {
        panic!("nobody leads");
    };
    let all_but = |place: Place| (0..4).map(|other| other != place).collect::<Vec<bool>>();
    let none_but = |place: Place| (0..4).map(|other| other == place).collect::<Vec<bool>>();
    for returns in [false, true] {
        let (voters, gone, _) = last(Fault::Remove { node: 2, returns, cut: None });
        assert_eq!((voters, gone), (all_but(2), none_but(2)), "returns: {returns}");
    }
    let (voters, gone, now) = last(Fault::RemoveLeader);
    assert_eq!((voters, gone), (all_but(first), none_but(first)));
    assert!(now.is_some_and(|now| now != first));
    // Of four, three vote, and the fourth is a learner.
    let seen = through(
        &Plan::quiet(3),
        Fault::Join { node: 2, birth: None, removed: None, expected: None },
        true,
        move |cluster| (voters_of(cluster), cluster.members[2].id().is_some()),
    );
    assert_eq!(seen[0].0, (vec![true, false, false], false));
    assert_eq!(seen.last().unwrap().0, (vec![true; 3], true), "{seen:?}");
}

#[test]
fn a_worker_is_late_with_a_renewal_and_then_cut_off() {
    let span = 12 * SECOND;
    let plan = Plan { workers: 1, ..Plan::quiet(3) };
    let seen = through(&plan, Fault::Strand { node: 3, span }, false, cuts);
    let late = 2 * WORKER_RENEWAL;
    assert_seen(&seen, &[(vec![], late), (between(&[3], &[0, 1, 2]), span - late), (vec![], SECOND)]);
}

#[test]
fn a_worker_is_drained_and_takes_tasks_again() {
    let plan = Plan { workers: 1, ..Plan::quiet(3) };
    let drained = simulate(move |world| async move {
        let cluster = cluster(world, plan, true).await;
        let mut drained = Vec::new();
        let faulty = madsim::task::spawn(cluster.inflict(Fault::Drain { node: 3, span: 5 * SECOND }));
        for _ in 0..2 {
            sleep(2 * SECOND).await;
            let workers = cluster.operator.list_workers().await.unwrap();
            drained
                .push(workers.iter().filter(|worker| worker.drain_wanted).map(|worker| worker.id).collect::<Vec<_>>());
            sleep(4 * SECOND).await;
        }
        faulty.await.unwrap();
        cluster.world.network.set_wiretap(None);
        assert_eq!(drained[0], [cluster.members[3].id().unwrap().0]);
        drained
    });
    assert!(drained[1].is_empty(), "{drained:?}");
}

/// What is measured on a machine without a node: before a fault, when it has begun, and when it has ended; and how long it took.
fn around<T: Send + 'static>(fault: Fault, mut measure: impl FnMut(&Io) -> T + Send + 'static) -> ([T; 3], Duration) {
    simulate(move |world| async move {
        let cluster = cluster(world, Plan::quiet(2), false).await;
        let (io, _) = cluster.members[1].machine.boot();
        let before = measure(&io);
        let (began, faulty) = (now(), madsim::task::spawn(cluster.inflict(fault)));
        sleep(Duration::from_millis(1)).await;
        let within = measure(&io);
        faulty.await.unwrap();
        let took = now() - began;
        let after = measure(&io);
        cluster.world.network.set_wiretap(None);
        ([before, within, after], took)
    })
}

#[test]
fn a_full_disk_takes_what_there_is_room_for_until_there_is_more() {
    let fault = Fault::Full { node: 1, left: 10_000, span: 2 * SECOND };
    let mut len = 0;
    let (grown, took) = around(fault, move |io| {
        let file = io.disk.open("file").unwrap();
        [20_000, 9_000].map(|more| {
            let grown = file.set_len(len + more).is_ok();
            len += if grown { more } else { 0 };
            grown
        })
    });
    assert_eq!(grown, [[true; 2], [false, true], [true; 2]]);
    assert!(took.abs_diff(2 * SECOND) < Duration::from_millis(1), "{took:?}");
}

#[test]
fn one_operation_of_a_kind_fails() {
    for (op, failing) in [(DiskOp::Read, 1), (DiskOp::Write, 0), (DiskOp::Sync, 2)] {
        let (worked, _) = around(Fault::DiskError { node: 1, op, down: SECOND }, |io| {
            let file = io.disk.open("file").unwrap();
            let both = || {
                let wrote = file.set_len(4096).and_then(|()| file.write(0, &[1; 4096])).is_ok();
                [wrote, file.read(0, &mut [0; 512]).is_ok(), file.sync_data().is_ok()]
            };
            [both(), both()]
        });
        let [before, within, after] = worked;
        let failed: Vec<usize> = (0..3).filter(|op| !within[0][*op]).collect();
        assert_eq!((before, after, within[1]), ([[true; 3]; 2], [[true; 3]; 2], [true; 3]), "{op:?}");
        assert_eq!(failed, [failing], "{op:?}");
    }
}

#[test]
fn the_clock_of_one_machine_goes_its_own_way() {
    let span = 10 * SECOND;
    for ppm in [-200_000, 0, 200_000, FROZEN_PPM] {
        let (at, took) = around(Fault::Speed { node: 1, ppm, span }, |io| io.clock.now());
        let ran = at[2].since(at[1]).as_secs_f64() / (took - Duration::from_millis(1)).as_secs_f64();
        assert!((ran - 1.0 - ppm as f64 / 1e6).abs() < 1e-6, "{ppm}: {ran}");
    }
    for millis in [-3_600_000, 20_000] {
        let (at, _) = around(Fault::WallStep { node: 1, millis }, |io| (io.clock.wall(), io.clock.now()));
        let step = |from: usize| at[from + 1].0.0 as i64 - at[from].0.0 as i64;
        assert!((millis..millis + 3).contains(&step(0)) && step(1) == 0, "{millis}: {at:?}");
        assert!(at[1].1.since(at[0].1) < Duration::from_millis(2), "{millis}: {at:?}");
    }
}

#[test]
fn a_paused_machine_stands_still_and_a_slow_one_gets_on_slowly() {
    let span = 10 * SECOND;
    let turns = |fault| {
        let count = Arc::new(AtomicU64::new(0));
        let (turns, _) = around(fault, move |io| {
            let before = count.load(Ordering::Relaxed);
            if before == 0 {
                let count = count.clone();
                count.store(1, Ordering::Relaxed);
                let task = async move {
                    loop {
                        sleep(Duration::from_millis(10)).await;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                };
                io.spawn.spawn("turns", Box::pin(task)).detach();
            }
            before
        });
        turns[2] - turns[1]
    };
    let full = turns(Fault::Speed { node: 1, ppm: 0, span });
    let (paused, slow) = (turns(Fault::Pause { node: 1, span }), turns(Fault::Slow { node: 1, span }));
    assert!(full > 990 && paused <= 1 && slow > 30 && slow < full / 3, "{full}, {paused} and {slow}");
}

/// The log of a member goes on while its state does not, for far longer than jobs for the state may be outstanding.
#[test]
fn whose_state_is_slow_goes_on_acknowledging() {
    let plan = Plan { flow: Flow { committed_bytes: 1, ..Flow::default() }, ..Plan::quiet(3) };
    let ahead = simulate(move |world| async move {
        let (io, _) = world.machine().boot();
        let cluster = cluster(world, plan, true).await;
        let leading = leader(&cluster).unwrap();
        let (slow, other) = ((leading + 1) % 3, (leading + 2) % 3);
        let span = 60 * SECOND;
        // Nothing is committed without the slow one.
        let cut = madsim::task::spawn(cluster.inflict(Fault::Cut { links: Links::Isolate { node: other }, span }));
        let stall = madsim::task::spawn(cluster.inflict(Fault::Stall { node: slow, files: Files::State, span }));
        let member = &cluster.members[leading];
        let client = Client::over(io, vec![(member.address(), member.within())], 30 * SECOND);
        let mut ahead = 0;
        for number in 0..1_000u64 {
            let key = number.to_be_bytes().to_vec().into();
            client.put_request(PutRequest { key, ..PutRequest::default() }).await.unwrap();
            let watched = cluster.watch.state();
            let of = |place: Place| &watched.statuses[&cluster.members[place].id().unwrap()];
            let acknowledged = of(leading).matched[&cluster.members[slow].id().unwrap()];
            ahead = ahead.max(acknowledged.0 - of(slow).applied.0);
        }
        assert_eq!(leader(&cluster), Some(leading));
        drop((cut, stall));
        ahead
    });
    assert!(ahead > 2 * APPLY_JOBS_MAX as u64, "acknowledged only {ahead} entries more than were applied");
}

/// Whose state hangs answers nobody: another is to lead, and does.
#[test]
fn a_leader_whose_state_hangs_gives_up_leading() {
    let moved = |files: Option<Files>| {
        simulate(move |world| async move {
            let (io, _) = world.machine().boot();
            let cluster = cluster(world, Plan::quiet(3), true).await;
            let leading = leader(&cluster).unwrap();
            let stall = files.map(|files| {
                let fault = Fault::Stall { node: leading, files, span: 60 * SECOND };
                madsim::task::spawn(cluster.inflict(fault))
            });
            let member = &cluster.members[leading];
            let client = Client::over(io, vec![(member.address(), member.within())], SECOND);
            let began = now();
            let mut number = 0u64;
            while leader(&cluster) == Some(leading) && now() - began < 60 * SECOND {
                number += 1;
                let key = number.to_be_bytes().to_vec().into();
                let _ = client.put_request(PutRequest { key, ..PutRequest::default() }).await;
            }
            drop(stall);
            now() - began
        })
    };
    let (state, nothing) = (moved(Some(Files::State)), moved(None));
    assert!(state < 60 * SECOND && nothing >= 60 * SECOND, "{state:?}, and {nothing:?} without");
}

/// What there is no room for in its entry is done in another: nobody is refused for what others ask at the same time, and few of a client's
/// requests are under way at once, however many there are.
#[test]
fn what_reads_much_is_done_one_after_another() {
    const COUNT: usize = 2_500;
    const READS: usize = SESSION_ANSWER_BYTES_MAX;
    let done = simulate(|world| async move {
        let (io, _) = world.machine().boot();
        let cluster = cluster(world, Plan { entry_reads: READS as u64, ..Plan::quiet(1) }, true).await;
        leader(&cluster).expect("it leads itself");
        let member = &cluster.members[0];
        let client = Client::over(io, vec![(member.address(), member.within())], 20 * SECOND);
        let put = PutRequest { key: "k".into(), value: vec![b'v'; READS / 32].into(), ..PutRequest::default() };
        client.put_request(put).await.expect("it is kept");
        let looks = |number: usize| {
            let union = Some(TargetUnion::Value(Bytes::from_static(b"other")));
            let compare = Compare {
                key: "k".into(),
                target: CompareTarget::Value as i32,
                target_union: union,
                ..Compare::default()
            };
            let set = PutRequest { key: number.to_string().into(), ..PutRequest::default() };
            let failure = vec![RequestOp { request: Some(Request::RequestPut(set)) }];
            TxnRequest { compare: vec![compare], failure, ..TxnRequest::default() }
        };
        let all = join_all((0..COUNT).map(|number| client.txn(looks(number)))).await;
        all.into_iter().filter(|done| done.as_ref().is_ok_and(|reply| !reply.succeeded)).count()
    });
    assert_eq!(done, COUNT);
}
