//! Does with the crate etcd-client what programs do with it, and prints what it is told, but for what differs from cluster to cluster.
//! The arguments are the endpoints.

use std::fmt::Debug;

use etcd_client::*;

/// What came of a step.
fn tell<T: Debug>(step: &str, told: Result<T, Error>) {
    match told {
        Ok(told) => println!("{step}: {told:?}"),
        Err(Error::GRpcStatus(status)) => println!("{step}: refused, {:?}, {}", status.code(), status.message()),
        Err(error) => println!("{step}: {error}"),
    }
}

fn pair(row: &KeyValue) -> (String, String, i64, i64, i64) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(row.key()), text(row.value()), row.create_revision(), row.mod_revision(), row.version())
}

fn got(answer: &GetResponse) -> (Vec<(String, String, i64, i64, i64)>, i64, bool, i64) {
    let revision = answer.header().map_or(0, ResponseHeader::revision);
    (answer.kvs().iter().map(pair).collect(), answer.count(), answer.more(), revision)
}

fn responses(answer: &TxnResponse) -> (bool, Vec<String>) {
    let one = |response: TxnOpResponse| match response {
        TxnOpResponse::Put(put) => format!("put {:?}", put.prev_key().map(pair)),
        TxnOpResponse::Get(get) => format!("get {:?}", got(&get).0),
        TxnOpResponse::Delete(delete) => format!("delete {}", delete.deleted()),
        TxnOpResponse::Txn(inner) => format!("txn {:?}", responses(&inner)),
    };
    (answer.succeeded(), answer.op_responses().into_iter().map(one).collect())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let mut client = Client::connect(&endpoints, None).await?;
    keys(&mut client).await;
    watches(&mut client).await?;
    leases(&mut client).await?;
    lines(&mut client).await?;
    upkeep(&mut client).await?;
    users(&mut client, &endpoints).await
}

async fn keys(client: &mut Client) {
    for (key, value) in [("a", "1"), ("a", "2"), ("b/1", "x"), ("b/2", "y"), ("b/3", "z")] {
        let options = PutOptions::new().with_prev_key();
        let put = client.put(key, value, Some(options)).await;
        tell("put", put.map(|put| (put.header().map(ResponseHeader::revision), put.prev_key().map(pair))));
    }
    let options = [
        ("one", "a", GetOptions::new()),
        ("prefix", "b/", GetOptions::new().with_prefix()),
        ("some", "b/", GetOptions::new().with_prefix().with_limit(2)),
        ("sorted", "b/", GetOptions::new().with_prefix().with_sort(SortTarget::Mod, SortOrder::Descend)),
        ("counted", "", GetOptions::new().with_all_keys().with_count_only()),
        ("keys", "", GetOptions::new().with_all_keys().with_keys_only()),
        ("from", "b/2", GetOptions::new().with_from_key()),
        ("past", "a", GetOptions::new().with_revision(2)),
        ("future", "a", GetOptions::new().with_revision(999)),
    ];
    for (step, key, options) in options {
        tell(step, client.get(key, Some(options)).await.map(|answer| got(&answer)));
    }
    let inner = Txn::new().and_then([TxnOp::get("a", None), TxnOp::delete("b/3", None)]);
    let txn = Txn::new()
        .when([Compare::value("a", CompareOp::Equal, "2"), Compare::version("none", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("c", "1", None), TxnOp::txn(inner)])
        .or_else([TxnOp::get("c", None)]);
    tell("txn", client.txn(txn.clone()).await.map(|answer| responses(&answer)));
    let txn = Txn::new().when([Compare::mod_revision("c", CompareOp::Less, 1)]).or_else([TxnOp::get("c", None)]);
    tell("txn that fails", client.txn(txn).await.map(|answer| responses(&answer)));
    let twice = Txn::new().and_then([TxnOp::put("d", "1", None), TxnOp::put("d", "2", None)]);
    tell("txn of one key twice", client.txn(twice).await.map(|answer| responses(&answer)));
    let options = DeleteOptions::new().with_prefix().with_prev_key();
    let deleted = client.delete("b/", Some(options)).await;
    tell("delete", deleted.map(|answer| (answer.deleted(), answer.prev_kvs().iter().map(pair).collect::<Vec<_>>())));
    let revision = |answer: CompactionResponse| answer.header().map(ResponseHeader::revision);
    tell("compact", client.compact(4, Some(CompactionOptions::new().with_physical())).await.map(revision));
    tell("compact again", client.compact(4, None).await.map(revision));
    tell("past that is gone", client.get("a", Some(GetOptions::new().with_revision(3))).await.map(|got| got.count()));
}

async fn watches(client: &mut Client) -> Result<(), Error> {
    let options = WatchOptions::new().with_prefix().with_start_revision(5).with_prev_key();
    let mut watch = client.watch("b/", Some(options)).await?;
    let mut events = 0;
    // Two came into being, one was removed in a transaction, and the rest together.
    while events < 5 {
        let Some(answer) = watch.message().await? else { break };
        println!("watch: created {} canceled {}", answer.created(), answer.canceled());
        for event in answer.events() {
            let before = event.prev_kv().map(|row| pair(row).1);
            println!("event: {:?} {:?} before {before:?}", event.event_type(), event.kv().map(pair));
            events += 1;
        }
    }
    watch.request_progress().await?;
    let progress = watch.message().await?;
    println!(
        "progress: {:?}",
        progress.map(|answer| (answer.events().len(), answer.header().map(ResponseHeader::revision)))
    );
    let mut late = client.watch("a", Some(WatchOptions::new().with_start_revision(2))).await?;
    while let Some(answer) = late.message().await? {
        if answer.canceled() {
            println!("late watch: canceled, {}, compacted {}", answer.cancel_reason(), answer.compact_revision());
            break;
        }
    }
    Ok(())
}

async fn leases(client: &mut Client) -> Result<(), Error> {
    let lease = client.lease_grant(100, Some(LeaseGrantOptions::new().with_id(77))).await?;
    println!("lease: {} for {}", lease.id(), lease.ttl());
    tell(
        "the same lease",
        client.lease_grant(100, Some(LeaseGrantOptions::new().with_id(77))).await.map(|lease| lease.id()),
    );
    let options = PutOptions::new().with_lease(77);
    tell("put under it", client.put("leased", "x", Some(options)).await.map(|_| ()));
    let (mut keeper, mut kept) = client.lease_keep_alive(77).await?;
    keeper.keep_alive().await?;
    println!("kept alive: {:?}", kept.message().await?.map(|answer| (answer.id(), answer.ttl())));
    let left = client.lease_time_to_live(77, Some(LeaseTimeToLiveOptions::new().with_keys())).await?;
    println!("left: {} of {}, keys {:?}", left.ttl() > 90, left.granted_ttl(), left.keys());
    println!("leases: {:?}", client.leases().await?.leases().iter().map(LeaseStatus::id).collect::<Vec<_>>());
    tell("revoke", client.lease_revoke(77).await.map(|_| ()));
    tell("revoke again", client.lease_revoke(77).await.map(|_| ()));
    tell("gone with it", client.get("leased", None).await.map(|answer| answer.count()));
    Ok(())
}

async fn lines(client: &mut Client) -> Result<(), Error> {
    let lease = client.lease_grant(100, Some(LeaseGrantOptions::new().with_id(78))).await?.id();
    let locked = client.lock("lock", Some(LockOptions::new().with_lease(lease))).await?;
    println!("locked: {}", String::from_utf8_lossy(locked.key()));
    tell("unlocked", client.unlock(locked.key()).await.map(|_| ()));
    let campaigned = client.campaign("seat", "me", lease).await?;
    let leader = campaigned.leader().cloned().unwrap_or_default();
    println!("leads: {} {}", String::from_utf8_lossy(leader.name()), String::from_utf8_lossy(leader.key()));
    let options = ProclaimOptions::new().with_leader(leader.clone());
    tell("proclaimed", client.proclaim("still me", Some(options)).await.map(|_| ()));
    tell("leader", client.leader("seat").await.map(|answer| answer.kv().map(|row| pair(row).1)));
    tell("resigned", client.resign(Some(ResignOptions::new().with_leader(leader))).await.map(|_| ()));
    tell("no leader", client.leader("seat").await.map(|answer| answer.kv().map(|row| pair(row).1)));
    Ok(())
}

async fn upkeep(client: &mut Client) -> Result<(), Error> {
    tell("alarms", client.alarm(AlarmAction::Get, AlarmType::None, None).await.map(|answer| answer.alarms().len()));
    tell("defragmented", client.defragment().await.map(|_| ()));
    let status = client.status().await?;
    println!("status: a leader {}, not empty {}", status.leader() != 0, status.db_size() > 0);
    tell("hash", client.hash_kv(0).await.map(|answer| answer.hash() != 0));
    let mut backup = client.snapshot().await?;
    let mut bytes = 0;
    while let Some(piece) = backup.message().await? {
        bytes += piece.blob().len();
    }
    println!("a backup has come: {}", bytes > 1_000);
    Ok(())
}

async fn users(client: &mut Client, endpoints: &[String]) -> Result<(), Error> {
    tell("role", client.role_add("reader").await.map(|_| ()));
    let may = Permission::read("c").with_prefix();
    tell("granted", client.role_grant_permission("reader", may).await.map(|_| ()));
    for (user, role) in [("root", "root"), ("ann", "reader")] {
        if role == "root" {
            tell("role", client.role_add(role).await.map(|_| ()));
        }
        tell("user", client.user_add(user, "secret", None).await.map(|_| ()));
        tell("role granted", client.user_grant_role(user, role).await.map(|_| ()));
    }
    tell("roles", client.user_get("ann").await.map(|answer| answer.roles().to_vec()));
    tell("enabled", client.auth_enable().await.map(|_| ()));
    tell("nobody", client.get("c", None).await.map(|answer| answer.count()));
    let wrong = ConnectOptions::new().with_user("ann", "wrong");
    tell("wrong password", Client::connect(endpoints, Some(wrong)).await.map(|_| ()));
    let mut ann = Client::connect(endpoints, Some(ConnectOptions::new().with_user("ann", "secret"))).await?;
    tell("may", ann.get("c", None).await.map(|answer| got(&answer).0));
    tell("may not", ann.put("c", "x", None).await.map(|_| ()));
    tell("may not this", ann.get("a", None).await.map(|answer| answer.count()));
    tell("is not root", ann.user_list().await.map(|_| ()));
    let mut root = Client::connect(endpoints, Some(ConnectOptions::new().with_user("root", "secret"))).await?;
    tell("users", root.user_list().await.map(|answer| answer.users().to_vec()));
    tell("disabled", root.auth_disable().await.map(|_| ()));
    tell("anybody", client.put("c", "x", None).await.map(|_| ()));
    Ok(())
}
