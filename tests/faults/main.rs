//! Every fault does what it says: what the simulator claims to put a node through is measured here, on its own network,
//! machines and clocks, without a node.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // tests are the outside world
#![cfg(feature = "sim")]

mod cluster;
mod plans;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body as AxumBody;
use axum::extract::Request;
use axum::routing::post;
use bytes::Bytes;
use cairn::ids::Address;
use cairn::io::{BlockingLoop, Io};
use cairn::raft::manager::{APPLY_THREAD, LOG_THREAD};
use cairn::sim::clock::FROZEN_PPM;
use cairn::sim::disk::{Files, PowerCut};
use cairn::sim::mark::{self, MARKS, Marks};
use cairn::sim::network::{QUEUED_MAX, REPLAY_MAX, STALL_MAX, Weather, Words};
use cairn::sim::spawn::{STALLED_MAX, TURN_MAX};
use cairn::sim::trace::Trace;
use cairn::sim::world::{Down, Machine, Seed, World, run};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use madsim::time::{TimeHandle, sleep};
use tokio::sync::{mpsc, oneshot};
use tonic::body::Body;
use tonic::codegen::tokio_stream::StreamExt;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tower::ServiceExt;

/// The stream of Raft messages, which meet their fate one by one, and one that is like TCP.
const MESSAGES: &str = "/cairn.v1.Peer/Raft";
const BYTES: &str = "/bytes";
/// The stream of a snapshot's chunks.
const CHUNKS: &str = "/cairn.v1.Peer/Snapshot";
/// The call that carries commands.
const COMMANDS: &str = "/cairn.v1.Store/Execute";

/// What arrived: when, and the message without its frame.
type Arrived = Arc<Mutex<Vec<(Duration, Bytes)>>>;

fn simulate<T: Send + 'static, F: Future<Output = T>>(body: impl FnOnce(Arc<World>) -> F + Send + 'static) -> T {
    run(Seed(1), Trace::default(), body).unwrap()
}

fn now() -> Duration {
    TimeHandle::current().elapsed()
}

fn at(machine: &Machine) -> Address {
    machine.address(0)
}

/// Boots a machine that notes what comes to it; its clients get an empty answer when they have said everything.
async fn listen(machine: &Arc<Machine>, arrived: &Arrived) {
    let (io, node) = machine.boot();
    let note = |arrived: Arrived| {
        post(move |request: Request| async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    arrived.lock().unwrap().push((now(), data.slice(5..)));
                }
            }
            AxumBody::empty()
        })
    };
    let router = Router::new().route(MESSAGES, note(arrived.clone())).route(BYTES, note(arrived.clone()));
    let router = router.route(COMMANDS, note(arrived.clone())).route(CHUNKS, note(arrived.clone()));
    let listener = io.network.bind(&at(machine)).await.unwrap();
    node.spawn(async move {
        let forever = Box::pin(std::future::pending());
        let _ = listener.serve(Routes::from(router), forever).await;
    });
    sleep(Duration::from_millis(1)).await;
}

/// Opens a stream. What is sent into the channel goes out as one message each.
fn stream(io: &Io, to: &Address, path: &str) -> mpsc::Sender<Bytes> {
    let (sender, messages) = mpsc::channel(1_000);
    let frames = ReceiverStream::new(messages).map(|message: Bytes| {
        let head = (message.len() as u32).to_be_bytes();
        Ok::<_, tonic::Status>(Frame::data(Bytes::from([&[0], &head[..], &message[..]].concat())))
    });
    let request = http::Request::post(format!("http://{to}{path}")).body(Body::new(StreamBody::new(frames))).unwrap();
    let channel = io.network.connect(to);
    madsim::task::spawn(channel.oneshot(request));
    sender
}

/// Two machines, and a stream from one to the other.
struct Talk {
    server: Arc<Machine>,
    client: Arc<Machine>,
    arrived: Arrived,
    /// The client's.
    io: Io,
    sender: mpsc::Sender<Bytes>,
}

async fn talk(world: &Arc<World>, path: &str) -> Talk {
    let (server, client) = (world.machine(), world.machine());
    let arrived = Arrived::default();
    listen(&server, &arrived).await;
    let (io, _) = client.boot();
    let sender = stream(&io, &at(&server), path);
    Talk { server, client, arrived, io, sender }
}

/// A message that is a number, this many bytes long.
fn number(n: u64, len: usize) -> Bytes {
    let mut bytes = n.to_be_bytes().to_vec();
    bytes.resize(len.max(8), 7);
    bytes.into()
}

fn number_of(message: &[u8]) -> Option<u64> {
    let (head, rest) = message.split_first_chunk()?;
    rest.iter().all(|byte| *byte == 7).then_some(u64::from_be_bytes(*head))
}

/// Sends `count` messages a millisecond apart in some weather. Gives the numbers that arrived and how long each took, in
/// the order of arrival; `None` for what was no longer a number.
async fn send(world: Arc<World>, path: &str, weather: Weather, count: u64, len: usize) -> Vec<(Option<u64>, Duration)> {
    let Talk { arrived, sender, .. } = talk(&world, path).await;
    sleep(Duration::from_millis(100)).await;
    world.network.set_weather(weather);
    let began = now();
    for n in 0..count {
        let _ = sender.send(number(n, len)).await;
        sleep(Duration::from_millis(1)).await;
    }
    sleep(2 * REPLAY_MAX).await;
    let took = |n: Option<u64>, arrived: Duration| arrived - began - Duration::from_millis(n.unwrap_or(0));
    let arrived = arrived.lock().unwrap();
    arrived.iter().map(|(at, message)| (number_of(message), took(number_of(message), *at))).collect()
}

fn numbers(arrived: &[(Option<u64>, Duration)]) -> Vec<u64> {
    arrived.iter().filter_map(|(n, _)| *n).collect()
}

const WINDY: Weather = Weather { delay_max: Duration::from_millis(40), ..Weather::CALM };

#[test]
fn a_calm_network_carries_everything_in_order_and_at_once() {
    for path in [MESSAGES, BYTES] {
        let arrived = simulate(move |world| send(world, path, Weather::CALM, 100, 8));
        assert_eq!(numbers(&arrived).len(), 100);
        let most = arrived.iter().map(|(_, took)| *took).max().unwrap();
        assert!(most <= Duration::from_millis(4), "{most:?}");
    }
}

#[test]
fn delay_reorders_messages_and_leaves_bytes_in_order() {
    let arrived = numbers(&simulate(|world| send(world, MESSAGES, WINDY, 200, 8)));
    assert_eq!(arrived.len(), 200);
    assert!(!arrived.is_sorted(), "{arrived:?}");
    let arrived = numbers(&simulate(|world| send(world, BYTES, WINDY, 200, 8)));
    assert_eq!(arrived, (0..200).collect::<Vec<_>>());
}

#[test]
fn some_messages_take_far_longer() {
    let weather = Weather { slow_permille: 100, ..WINDY };
    let arrived = simulate(move |world| send(world, MESSAGES, weather, 400, 8));
    let slow = arrived.iter().filter(|(_, took)| *took > 2 * WINDY.delay_max).count();
    assert!((10..60).contains(&slow), "{slow} of 400 took longer than twice the usual");
}

#[test]
fn messages_are_lost_and_bytes_are_not() {
    let weather = Weather { lose_permille: 300, ..Weather::CALM };
    let arrived = numbers(&simulate(move |world| send(world, MESSAGES, weather, 500, 8)));
    assert!((300..400).contains(&arrived.len()), "{} of 500", arrived.len());
    let arrived = numbers(&simulate(move |world| send(world, BYTES, weather, 500, 8)));
    assert_eq!(arrived.len(), 500);
}

#[test]
fn messages_are_repeated() {
    let weather = Weather { repeat_permille: 300, ..WINDY };
    let mut arrived = numbers(&simulate(move |world| send(world, MESSAGES, weather, 500, 8)));
    assert!((600..700).contains(&arrived.len()), "{} of 500", arrived.len());
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!(arrived.len(), 500, "a repetition took the place of another message");
}

#[test]
fn messages_come_once_more_minutes_later_and_after_a_restart() {
    let weather = Weather { replay_per_100k: 30_000, ..Weather::CALM };
    let again = simulate(move |world| async move {
        let Talk { server, arrived, io, sender, .. } = talk(&world, MESSAGES).await;
        world.network.set_weather(weather);
        for n in 0..100 {
            sender.send(number(n, 8)).await.unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        server.down(Down::Kill);
        world.network.set_weather(Weather::CALM);
        arrived.lock().unwrap().clear();
        listen(&server, &arrived).await;
        let (began, sender) = (now(), stream(&io, &at(&server), MESSAGES));
        while now() - began < REPLAY_MAX {
            sender.send(number(u64::MAX, 8)).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
        let arrived = arrived.lock().unwrap();
        let old = arrived.iter().filter(|(_, message)| number_of(message).is_some_and(|n| n < 100));
        old.map(|(at, _)| *at - began).collect::<Vec<_>>()
    });
    assert!((15..50).contains(&again.len()), "{} of 100 came again on a new connection", again.len());
    assert!(again.iter().any(|at| *at > REPLAY_MAX / 3), "the last one after {:?}", again.iter().max());
}

#[test]
fn one_link_has_a_weather_of_its_own() {
    let lost = Weather { lose_permille: 1_000, ..Weather::CALM };
    let arrived = simulate(move |world| async move {
        let (server, clients) = (world.machine(), [world.machine(), world.machine()]);
        let arrived = Arrived::default();
        listen(&server, &arrived).await;
        let io = [0, 1].map(|which| clients[which].boot().0);
        let senders = [0, 1].map(|which| stream(&io[which], &at(&server), MESSAGES));
        sleep(Duration::from_millis(100)).await;
        for weather in [Some(lost), None] {
            world.network.set_link(clients[0].id, server.id, weather);
            for (which, sender) in senders.iter().enumerate() {
                sender.send(number(which as u64, 8)).await.unwrap();
            }
            sleep(Duration::from_secs(1)).await;
        }
        arrived.lock().unwrap().iter().map(|(_, message)| number_of(message)).collect::<Vec<_>>()
    });
    let count = |which| arrived.iter().filter(|number| **number == Some(which)).count();
    assert_eq!((count(0), count(1)), (1, 2), "{arrived:?}");
}

#[test]
fn nothing_comes_once_more_over_a_cut_link() {
    let weather = Weather { replay_per_100k: 100_000, ..Weather::CALM };
    let [while_cut, after] = simulate(move |world| async move {
        let Talk { server, client, arrived, sender, .. } = talk(&world, MESSAGES).await;
        sleep(Duration::from_millis(100)).await;
        world.network.set_weather(weather);
        for n in 0..50 {
            sender.send(number(n, 8)).await.unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        world.network.set_weather(Weather::CALM);
        let mut counts = [0; 2];
        for (count, cut) in counts.iter_mut().zip([true, false]) {
            world.network.set_cut(client.id, server.id, cut);
            arrived.lock().unwrap().clear();
            for _ in 0..10 {
                sender.send(number(u64::MAX, 8)).await.unwrap();
                sleep(REPLAY_MAX / 10).await;
            }
            *count = arrived
                .lock()
                .unwrap()
                .iter()
                .filter(|(_, message)| number_of(message).is_some_and(|n| n < 50))
                .count();
        }
        counts
    });
    assert!(while_cut == 0 && after > 20, "{while_cut} while it was cut, and {after} after");
}

#[test]
fn messages_are_corrupted_and_cut_short() {
    let weather = Weather { corrupt_per_100k: 30_000, ..Weather::CALM };
    let (server, client) = (0, 1);
    for path in [MESSAGES, CHUNKS] {
        let arrived = simulate(move |world| async move {
            let machines = [world.machine(), world.machine()];
            let arrived = Arrived::default();
            listen(&machines[server], &arrived).await;
            let (io, _) = machines[client].boot();
            let sender = stream(&io, &at(&machines[server]), path);
            world.network.set_weather(weather);
            for _ in 0..500 {
                sender.send(Bytes::from_static(&[0; 16])).await.unwrap();
                sleep(Duration::from_millis(1)).await;
            }
            sleep(Duration::from_secs(1)).await;
            (
                Arc::try_unwrap(arrived)
                    .map_or_else(|shared| shared.lock().unwrap().clone(), |own| own.into_inner().unwrap()),
                world.network.counts(),
            )
        });
        let (arrived, counts) = arrived;
        let short = arrived.iter().filter(|(_, message)| message.len() < 16).count();
        let flipped = arrived.iter().filter(|(_, m)| m.iter().map(|byte| byte.count_ones()).sum::<u32>() == 1).count();
        assert!(short > 10 && flipped > 50, "{path}: {short} cut short, {flipped} with a bit changed");
        assert!(counts.corrupted as usize >= short + flipped && counts.corrupted < 200, "{counts:?}");
    }
}

#[test]
fn a_reset_loses_what_is_under_way() {
    let weather = Weather { reset_per_100k: 600, ..WINDY };
    for path in [MESSAGES, BYTES] {
        let arrived = numbers(&simulate(move |world| send(world, path, weather, 500, 8)));
        let last = arrived.iter().max().copied().unwrap_or_default();
        assert!((1..450).contains(&last), "{path}: the connection lived until message {last}");
    }
}

#[test]
fn a_narrow_link_takes_its_time_and_drops_messages_when_it_lags() {
    let weather = Weather { bytes_per_ms: 10, ..Weather::CALM };
    let arrived = simulate(move |world| send(world, BYTES, weather, 100, 995));
    assert_eq!(numbers(&arrived), (0..100).collect::<Vec<_>>());
    let last = arrived.last().unwrap().1;
    assert!(last > Duration::from_secs(9), "100 kB at 10 kB/s took {last:?}");
    let arrived = simulate(move |world| send(world, MESSAGES, weather, 500, 995));
    assert!((20..50).contains(&arrived.len()), "{} of 500 were carried", arrived.len());
    let most = arrived.iter().map(|(_, took)| *took).max().unwrap();
    assert!(most <= QUEUED_MAX + Duration::from_millis(200), "one queued for {most:?}");
}

#[test]
fn a_cut_works_one_way_and_holds_up_bytes_until_it_is_mended() {
    simulate(|world| async move {
        let (server, client) = (world.machine(), world.machine());
        let arrived = Arrived::default();
        listen(&server, &arrived).await;
        let (io, _) = client.boot();
        let [messages, bytes] = [MESSAGES, BYTES].map(|path| stream(&io, &at(&server), path));
        sleep(Duration::from_millis(100)).await;
        let count = |from: u64| arrived.lock().unwrap().iter().filter(|(_, m)| number_of(m) == Some(from)).count();
        // The way back is another link.
        world.network.set_cut(server.id, client.id, true);
        messages.send(number(1, 8)).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        assert_eq!(count(1), 1, "a cut of one direction cut the other");
        world.network.set_cut(server.id, client.id, false);
        // Two faults cut the link; it is mended when both have ended.
        world.network.set_cut(client.id, server.id, true);
        world.network.set_cut(client.id, server.id, true);
        world.network.set_cut(client.id, server.id, false);
        messages.send(number(2, 8)).await.unwrap();
        bytes.send(number(3, 8)).await.unwrap();
        sleep(Duration::from_millis(500)).await;
        assert_eq!((count(2), count(3)), (0, 0), "something crossed a cut");
        let began = now();
        let request = http::Request::post(format!("http://{}{BYTES}", at(&server))).body(Body::empty()).unwrap();
        io.network.connect(&at(&server)).oneshot(request).await.unwrap_err();
        assert!(now() - began > Duration::from_secs(1), "a connection across a cut was refused at once");
        world.network.set_cut(client.id, server.id, false);
        sleep(Duration::from_millis(500)).await;
        assert_eq!((count(2), count(3)), (0, 1), "bytes go on when the cut is mended, messages are gone");
    });
}

#[test]
fn calls_and_answers_are_held_up() {
    let took = simulate(|world| async move {
        let (server, client) = (world.machine(), world.machine());
        listen(&server, &Arrived::default()).await;
        let (io, _) = client.boot();
        world.network.set_weather(Weather { stall_permille: 500, ..Weather::CALM });
        let mut took = Vec::new();
        for _ in 0..50 {
            let began = now();
            let request = http::Request::post(format!("http://{}{BYTES}", at(&server))).body(Body::empty()).unwrap();
            io.network.connect(&at(&server)).oneshot(request).await.unwrap();
            took.push(now() - began);
        }
        took
    });
    let held = took.iter().filter(|took| **took > Duration::from_millis(50)).count();
    assert!((25..48).contains(&held), "{held} of 50");
    assert!(took.iter().max().unwrap() > &STALL_MAX);
}

/// Makes a call without a body; says whether it was answered, and how long that took.
async fn ask(io: &Io, to: &Address, path: &str) -> (bool, Duration) {
    let began = now();
    let request = http::Request::post(format!("http://{to}{path}")).body(Body::empty()).unwrap();
    (io.network.connect(to).oneshot(request).await.is_ok(), now() - began)
}

#[test]
fn everything_takes_longer_where_machines_are_far_from_each_other() {
    simulate(|world| async move {
        let (server, client) = (world.machine(), world.machine());
        listen(&server, &Arrived::default()).await;
        let (io, _) = client.boot();
        let far = Duration::from_millis(200);
        let (_, near) = ask(&io, &at(&server), BYTES).await;
        world.network.set_far(far);
        let (_, took) = ask(&io, &at(&server), BYTES).await;
        world.network.mend();
        let (_, again) = ask(&io, &at(&server), BYTES).await;
        assert!(near < far && again < far && took >= 2 * far && took < 3 * far, "{near:?}, {took:?}, {again:?}");
    });
}

#[test]
fn commands_wait_outside_and_other_calls_do_not() {
    simulate(|world| async move {
        let (server, client) = (world.machine(), world.machine());
        listen(&server, &Arrived::default()).await;
        let (io, _) = client.boot();
        world.network.set_held(client.id, Words::Commands, true);
        let (network, id) = (world.network.clone(), client.id);
        madsim::task::spawn(async move {
            sleep(Duration::from_secs(5)).await;
            network.set_held(id, Words::Commands, false);
        });
        let (_, other) = ask(&io, &at(&server), BYTES).await;
        let (answered, command) = ask(&io, &at(&server), COMMANDS).await;
        assert!(other < Duration::from_secs(1), "{other:?}");
        assert!(answered && command > Duration::from_secs(4), "{command:?}");
        assert_eq!(world.network.counts().held, 1);
    });
}

#[test]
fn commands_are_carried_out_and_not_answered() {
    simulate(|world| async move {
        let (server, one, other) = (world.machine(), world.machine(), world.machine());
        listen(&server, &Arrived::default()).await;
        let (of_one, of_other) = (one.boot().0, other.boot().0);
        let id = one.id;
        world.network.set_unanswered(Some(Arc::new(move |from| from == id)));
        let answered = [
            ask(&of_one, &at(&server), COMMANDS).await.0,
            ask(&of_one, &at(&server), BYTES).await.0,
            ask(&of_other, &at(&server), COMMANDS).await.0,
        ];
        assert_eq!((answered, world.network.counts().unanswered), ([false, true, true], 1));
    });
}

#[test]
fn a_deaf_machine_hears_no_messages_and_others_do() {
    simulate(|world| async move {
        let (one, other) = (world.machine(), world.machine());
        let (to_one, to_other) = (Arrived::default(), Arrived::default());
        listen(&one, &to_one).await;
        listen(&other, &to_other).await;
        let io = world.machine().boot().0;
        let (first, second) = (stream(&io, &at(&one), MESSAGES), stream(&io, &at(&other), MESSAGES));
        world.network.set_deaf(one.id, true);
        for n in 0..10 {
            first.send(number(n, 8)).await.unwrap();
            second.send(number(n, 8)).await.unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!((to_one.lock().unwrap().len(), to_other.lock().unwrap().len()), (0, 10));
        world.network.set_deaf(one.id, false);
        first.send(number(10, 8)).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(to_one.lock().unwrap().len(), 1);
    });
}

#[test]
fn what_was_said_in_one_life_comes_again_in_the_next() {
    let again = simulate(|world| async move {
        let Talk { server, arrived, io, sender, .. } = talk(&world, MESSAGES).await;
        world.network.remember(server.id);
        for n in 0..20 {
            sender.send(number(n, 8)).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        server.down(Down::Kill);
        arrived.lock().unwrap().clear();
        listen(&server, &arrived).await;
        world.network.echo(server.id, 3, Duration::from_secs(2));
        let (began, sender) = (now(), stream(&io, &at(&server), MESSAGES));
        for _ in 0..300 {
            sender.send(number(u64::MAX, 8)).await.unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        let arrived = arrived.lock().unwrap();
        let old = arrived.iter().filter_map(|(at, message)| Some((number_of(message)?, *at - began)));
        old.filter(|(n, _)| *n < 20).collect::<Vec<_>>()
    });
    assert_eq!(again.len(), 60);
    assert!((0..20).all(|number| again.iter().filter(|(n, _)| *n == number).count() == 3));
    assert!(again.iter().all(|(_, after)| *after < Duration::from_millis(2_050)), "{again:?}");
}

#[test]
fn the_tasks_of_a_crowded_machine_wait_for_their_turns() {
    let [alone, crowded] = [false, true].map(|crowded| {
        simulate(move |world| async move {
            let machine = world.machine();
            machine.crowd.set(crowded);
            let (io, _) = machine.boot();
            let (ended, end) = oneshot::channel();
            let began = now();
            let turns = async move {
                for _ in 0..100 {
                    sleep(Duration::from_millis(1)).await;
                }
                ended.send(()).unwrap();
            };
            io.spawn.spawn("turns", Box::pin(turns)).detach();
            end.await.unwrap();
            now() - began
        })
    });
    assert!(crowded > 2 * alone && crowded < alone + 101 * TURN_MAX, "{alone:?} and {crowded:?}");
}

/// Writes a byte to a file of a machine, and syncs it if told to.
fn write(machine: &Arc<Machine>, io: &Io, synced: bool) {
    let file = io.disk.open("file").unwrap();
    redb::StorageBackend::write(&file, 0, &[1; 4096]).unwrap();
    io.disk.sync_dir().unwrap();
    redb::StorageBackend::sync_data(&file).unwrap();
    redb::StorageBackend::write(&file, 0, &[2; 4096]).unwrap();
    if synced {
        redb::StorageBackend::sync_data(&file).unwrap();
    }
    assert!(machine.is_up());
}

fn read(io: &Io) -> u8 {
    let mut byte = [0];
    redb::StorageBackend::read(&io.disk.open("file").unwrap(), 0, &mut byte).unwrap();
    byte[0]
}

#[test]
fn a_kill_keeps_what_was_written_and_a_power_cut_only_what_was_synced() {
    let lost = Down::Power(PowerCut { drop_permille: 1000, tear_permille: 0 });
    for (how, synced, expected) in [(Down::Kill, false, 2), (lost, false, 1), (lost, true, 2)] {
        let found = simulate(move |world| async move {
            let machine = world.machine();
            write(&machine, &machine.boot().0, synced);
            machine.down(how);
            read(&machine.boot().0)
        });
        assert_eq!(found, expected, "{how:?}, synced: {synced}");
    }
}

#[test]
fn a_power_cut_meets_what_a_killed_node_has_left() {
    let found = simulate(|world| async move {
        let machine = world.machine();
        write(&machine, &machine.boot().0, false);
        machine.down(Down::Kill);
        machine.down(Down::Power(PowerCut { drop_permille: 1000, tear_permille: 0 }));
        read(&machine.boot().0)
    });
    assert_eq!(found, 1);
}

#[test]
fn a_paused_machine_does_nothing_while_its_clock_runs() {
    simulate(|world| async move {
        let machine = world.machine();
        let (io, node) = machine.boot();
        let ticks = Arc::new(Mutex::new(Vec::new()));
        let (clock, noted) = (io.clock.clone(), ticks.clone());
        node.spawn(async move {
            loop {
                clock.sleep(Duration::from_millis(100)).await;
                noted.lock().unwrap().push(clock.now());
            }
        });
        sleep(Duration::from_secs(1)).await;
        let (before, count) = (io.clock.now(), ticks.lock().unwrap().len());
        machine.pause();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(ticks.lock().unwrap().len(), count, "a paused machine did something");
        let ran = io.clock.now().since(before);
        assert!(ran > Duration::from_millis(9_900), "its clock ran {ran:?} in ten seconds");
        machine.resume();
        sleep(Duration::from_millis(50)).await;
        let late = ticks.lock().unwrap()[count].since(before);
        assert!(late > Duration::from_millis(9_900), "the timer of before fired after {late:?}");
    });
}

#[test]
fn a_dead_machine_does_nothing_and_is_not_listening() {
    simulate(|world| async move {
        let (server, client) = (world.machine(), world.machine());
        listen(&server, &Arrived::default()).await;
        let (io, _) = client.boot();
        server.down(Down::Kill);
        let request = http::Request::post(format!("http://{}{BYTES}", at(&server))).body(Body::empty()).unwrap();
        let refused = io.network.connect(&at(&server)).oneshot(request).await.unwrap_err();
        assert!(refused.to_string().contains("refused"), "{refused}");
    });
}

#[test]
fn clocks_drift_apart_and_a_set_time_of_day_moves_no_timer() {
    simulate(|world| async move {
        let machines: Vec<Arc<Machine>> = (0..8).map(|_| world.machine()).collect();
        let io: Vec<Io> = machines.iter().map(|machine| machine.boot().0).collect();
        let began: Vec<_> = io.iter().map(|io| io.clock.now()).collect();
        sleep(Duration::from_secs(1_000)).await;
        let ran: Vec<Duration> = io.iter().zip(&began).map(|(io, began)| io.clock.now().since(*began)).collect();
        let (least, most) = (ran.iter().min().unwrap(), ran.iter().max().unwrap());
        assert!(*most - *least > Duration::from_millis(100), "{ran:?}");
        assert!(*least >= Duration::from_millis(999_500) && *most <= Duration::from_millis(1_000_500), "{ran:?}");
        let (wall, own) = (io[0].clock.wall(), io[0].clock.now());
        machines[0].clock.step_wall(3_600_000);
        assert_eq!(io[0].clock.wall().0, wall.0 + 3_600_000);
        assert_eq!(io[0].clock.now(), own);
        machines[0].clock.step_wall(-20_000);
        assert_eq!(io[0].clock.wall().0, wall.0 + 3_580_000);
    });
}

#[test]
fn a_clock_runs_fast_or_slow_or_stands_still_and_timers_go_by_it() {
    simulate(|world| async move {
        let machine = world.machine();
        let (io, node) = machine.boot();
        let ran = async |ppm| {
            machine.clock.set_speed(ppm);
            let before = io.clock.now();
            sleep(Duration::from_secs(10)).await;
            io.clock.now().since(before).as_millis()
        };
        assert_eq!(ran(Some(200_000)).await, 12_000);
        assert_eq!(ran(Some(-200_000)).await, 8_000);
        assert_eq!(ran(Some(FROZEN_PPM)).await, 0);
        assert!(ran(None).await.abs_diff(10_000) <= 5);

        // A timer that was set before the clock stood still fires when the clock, not the world, gets there.
        let (clock, fired) = (io.clock.clone(), Arc::new(Mutex::new(None)));
        let noted = fired.clone();
        let due = clock.now() + Duration::from_secs(1);
        node.spawn(async move {
            clock.sleep_until(due).await;
            *noted.lock().unwrap() = Some(clock.now());
        });
        assert_eq!(ran(Some(FROZEN_PPM)).await, 0);
        assert_eq!(*fired.lock().unwrap(), None, "it fired while its clock stood still");
        ran(None).await;
        let late = fired.lock().unwrap().unwrap().since(due);
        assert!(late < Duration::from_millis(100), "{late:?}");
    });
}

#[test]
fn a_machine_crashes_where_it_is_told_to() {
    simulate(|world| async move {
        let (machine, other) = (world.machine(), world.machine());
        let ((io, node), (_, elsewhere)) = (machine.boot(), other.boot());
        let names = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
        let mut hit = machine.crash_at(Marks::Drawn(7));
        let pass = move |node: &madsim::runtime::NodeHandle| {
            node.spawn(async move { names.iter().for_each(|name| mark::note(name)) })
        };
        pass(&elsewhere).await.unwrap();
        assert!(hit.try_recv().is_err(), "another machine set it off");
        pass(&node).await.unwrap();
        assert!(names.contains(&hit.await.unwrap()));
        // Its disk lets through two operations more at most.
        assert!((0..3).any(|_| io.disk.list().is_err()), "its disk works on");

        let mut again = machine.crash_at(Marks::Drawn(7));
        machine.crash_nowhere();
        pass(&node).await.unwrap();
        assert!(again.try_recv().is_err(), "it was told not to");

        let hit = machine.crash_at(Marks::named(MARKS[1]));
        node.spawn(async { MARKS.iter().for_each(|name| mark::note(name)) }).await.unwrap();
        assert_eq!(hit.await.unwrap(), MARKS[1]);
    });
}

/// Does nothing, so many times.
struct Jobs(u32, Option<oneshot::Sender<()>>);

impl BlockingLoop for Jobs {
    fn ready(&mut self) -> futures_util::future::BoxFuture<'_, bool> {
        Box::pin(std::future::ready(self.0 > 0))
    }

    fn run(&mut self) {
        self.0 -= 1;
        if self.0 == 0 {
            self.1.take().unwrap().send(()).unwrap();
        }
    }
}

#[test]
fn a_stalled_disk_is_slow() {
    let took = |stalled, thread| {
        simulate(move |world| async move {
            let machine = world.machine();
            machine.stall.set(stalled);
            let (ended, end) = oneshot::channel();
            let began = now();
            machine.boot().0.spawn.blocking(thread, Box::new(Jobs(50, Some(ended))));
            end.await.unwrap();
            now() - began
        })
    };
    let quick = took(None, LOG_THREAD);
    let bounds = 10 * quick..50 * (STALLED_MAX + Duration::from_millis(100));
    for (files, log, apply) in [(Files::All, true, true), (Files::Log, true, false), (Files::State, false, true)] {
        for (thread, slow) in [(LOG_THREAD, log), (APPLY_THREAD, apply)] {
            let took = took(Some(files), thread);
            assert_eq!(bounds.contains(&took), slow, "{files:?}, {thread}: {took:?}, and {quick:?} without");
        }
    }
}
