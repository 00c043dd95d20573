//! A loopback proxy before each member, which obeys the links between members.
//!
//! Members advertise their proxies, so all that one says to another goes through here. Who dials is told by the kernel: the
//! socket at the other end of an accepted connection belongs to a process, and the processes of the members are known. A
//! connection of anybody else is carried as it is. A connection dialled by `a` to `b` has its bytes on the link `a→b` in one
//! direction and on `b→a` in the other, and obeys both.
//!
//! What waits here is bounded: a buffer for each direction of a connection, and connections up to a number.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn::sim::fault::Place;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::links::{Flow, Link, Links};

/// Connections that one proxy carries at once; more are refused.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of one direction of a connection that may wait here; the kernel's buffers come on top.
const BUFFER_BYTES: usize = 16 * 1024;
/// Pause after a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What stands before one member.
pub struct Proxy {
    place: Place,
    /// Where it listens: what the member advertises.
    pub address: SocketAddr,
    target: SocketAddr,
    links: Arc<Links>,
    room: Arc<Semaphore>,
}

impl Proxy {
    /// Listens, and carries what comes to the member at `target`.
    pub async fn start(place: Place, target: SocketAddr, links: Arc<Links>) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let proxy = Arc::new(Self { place, address, target, links, room });
        tokio::spawn(proxy.clone().accept(listener));
        Ok(proxy)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            match (listener.accept().await, self.room.clone().try_acquire_owned()) {
                (Ok((accepted, peer)), Ok(permit)) => {
                    let proxy = self.clone();
                    tokio::spawn(async move {
                        proxy.carry(accepted, peer).await;
                        drop(permit);
                    });
                }
                (Ok(_), Err(_)) => {}
                (Err(_), _) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn carry(self: Arc<Self>, mut accepted: TcpStream, peer: SocketAddr) {
        let (links, own) = (self.links.clone(), self.address);
        let owner = tokio::task::spawn_blocking(move || links.owner(peer, own)).await.ok().flatten();
        let free = Link::default();
        let (there, back) = match owner {
            Some(from) => (self.links.link(from, self.place), self.links.link(self.place, from)),
            None => (&free, &free),
        };
        let is_reset = |flow: Flow| flow.resets > 0;
        let connect = async {
            // What does not arrive does not connect either.
            there.until(|flow| flow.stalls == 0).await;
            TcpStream::connect(self.target).await
        };
        let mut target = tokio::select! {
            biased;
            () = there.until(is_reset) => return reset(&accepted),
            () = back.until(is_reset) => return reset(&accepted),
            target = connect => match target {
                Ok(target) => target,
                Err(_) => return reset(&accepted),
            },
        };
        let _ = (accepted.set_nodelay(true), target.set_nodelay(true));
        let was_reset = {
            let (from_dialler, to_dialler) = accepted.split();
            let (from_target, to_target) = target.split();
            tokio::select! {
                biased;
                () = there.until(is_reset) => true,
                () = back.until(is_reset) => true,
                // A connection that is closed at one end is closed as soon as the other may know.
                _ = pump(from_dialler, to_target, there) => false,
                _ = pump(from_target, to_dialler, back) => false,
            }
        };
        if was_reset {
            reset(&accepted);
            reset(&target);
        }
    }
}

/// Has a connection break when it is dropped, instead of being closed in order.
fn reset(stream: &TcpStream) {
    // If it is broken already, it needs no more.
    let _ = stream.set_zero_linger();
}

/// Carries bytes until there are no more, as the link permits.
async fn pump(from: ReadHalf<'_>, to: WriteHalf<'_>, link: &Link) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        from.readable().await?;
        let read = match from.try_read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            read => read,
        };
        let delay = link.flow().delay;
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        link.until(|flow| flow.stalls == 0).await;
        let mut left = match read? {
            0 => return Ok(()),
            len => &buffer[..len],
        };
        while !left.is_empty() {
            to.writable().await?;
            match to.try_write(left) {
                Ok(len) => left = &left[len..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::How;
    use super::*;

    /// A member at place 1 that answers every byte with the same, and its proxy; this process is the member at place 0.
    async fn pair() -> (Arc<Links>, Arc<Proxy>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (links, target) = (Arc::<Links>::default(), listener.local_addr().unwrap());
        links.set_process(0, std::process::id());
        let proxy = Proxy::start(1, target, links.clone()).await.unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    while let Ok(byte) = receive(&stream).await {
                        send(&stream, byte).await;
                    }
                });
            }
        });
        (links, proxy)
    }

    async fn send(stream: &TcpStream, byte: u8) {
        stream.writable().await.unwrap();
        stream.try_write(&[byte]).unwrap();
    }

    async fn receive(stream: &TcpStream) -> io::Result<u8> {
        let mut byte = [0];
        loop {
            stream.readable().await?;
            match stream.try_read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn is_silent(stream: &TcpStream) -> bool {
        tokio::time::timeout(Duration::from_millis(100), receive(stream)).await.is_err()
    }

    #[tokio::test]
    async fn a_cut_link_stalls_in_its_direction_and_mends() {
        let (links, proxy) = pair().await;
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        for (from, to) in [(0, 1), (1, 0)] {
            send(&stream, 1).await;
            assert_eq!(receive(&stream).await.unwrap(), 1);
            links.cut(from, to, How::Stall);
            links.cut(from, to, How::Stall);
            send(&stream, 2).await;
            links.mend(from, to, How::Stall);
            assert!(is_silent(&stream).await, "one of two cuts was mended");
            links.mend(from, to, How::Stall);
            assert_eq!(receive(&stream).await.unwrap(), 2, "what waited was lost");
        }
        // A link to another member is another link, and one that is made while it is cut waits.
        links.cut(0, 2, How::Stall);
        send(&stream, 3).await;
        assert_eq!(receive(&stream).await.unwrap(), 3);
        links.cut(0, 1, How::Stall);
        let late = TcpStream::connect(proxy.address).await.unwrap();
        send(&late, 4).await;
        assert!(is_silent(&late).await);
        links.mend(0, 1, How::Stall);
        assert_eq!(receive(&late).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn a_reset_resets_what_there_is_and_what_comes() {
        let (links, proxy) = pair().await;
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        send(&stream, 1).await;
        assert_eq!(receive(&stream).await.unwrap(), 1);
        links.cut(1, 0, How::Reset);
        assert_eq!(receive(&stream).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let late = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(receive(&late).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        links.mend(1, 0, How::Reset);
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        send(&stream, 2).await;
        assert_eq!(receive(&stream).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_slow_link_takes_longer_and_others_are_not_touched() {
        let (links, proxy) = pair().await;
        let by = Duration::from_millis(80);
        links.slow(1, 0, by);
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        let began = tokio::time::Instant::now();
        send(&stream, 1).await;
        assert_eq!(receive(&stream).await.unwrap(), 1);
        assert!(began.elapsed() >= by);
        links.quicken(1, 0, by);
        // Who is no member is carried whatever is cut.
        links.set_process(0, 0);
        links.cut(0, 1, How::Stall);
        let client = TcpStream::connect(proxy.address).await.unwrap();
        send(&client, 2).await;
        assert_eq!(receive(&client).await.unwrap(), 2);
    }
}
