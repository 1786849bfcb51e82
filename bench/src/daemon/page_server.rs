//! A page server, as CRIU's, that is far away.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use pervma_serve::images::Images;

use crate::layout::PAGE;

const GET: u32 = 7;
const CLOSE: u32 = 0x1023;
/// Pages, which are present.
const PAGES: u32 = 6 | 4 << 16;
const HEAD: usize = 32;

/// Serves the pages of images to one connection after the other, as long as the process runs. What
/// is sent takes so long to come, either way.
pub(super) fn start(images: &Path, away: Duration) -> Result<SocketAddr, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let images = Images::open(images)?;
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            // Who is served has gone, perhaps.
            let _ = serve(connection, &images, away);
        }
    });
    Ok(address)
}

/// What is to be sent at some time.
enum Due {
    Pages([u8; HEAD], u64, usize),
    End,
}

fn serve(mut connection: TcpStream, images: &Images, away: Duration) -> std::io::Result<()> {
    let mut output = connection.try_clone()?;
    output.set_nodelay(true)?;
    let source = images.source();
    let (send, due) = channel::<(Instant, Due)>();
    thread::scope(|scope| {
        scope.spawn(move || -> std::io::Result<()> {
            let mut bytes = Vec::new();
            for (at, due) in due {
                thread::sleep(at.saturating_duration_since(Instant::now()));
                match due {
                    Due::Pages(head, offset, len) => {
                        bytes.resize(HEAD + len, 0);
                        bytes[..HEAD].copy_from_slice(&head);
                        source
                            .read_at(offset, &mut bytes[HEAD..])
                            .map_err(|_| std::io::Error::other("the pages cannot be read"))?;
                        output.write_all(&bytes)?;
                    }
                    Due::End => output.write_all(&[0; 4])?,
                }
            }
            Ok(())
        });
        let mut head = [0; HEAD];
        while connection.read_exact(&mut head).is_ok() {
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
            let (command, pages, addr, task) = (word(0) as u32, word(8), word(16), word(24));
            let at = Instant::now() + 2 * away;
            if command == CLOSE {
                let _ = send.send((at, Due::End));
                break;
            }
            let extents = images.extents(task as u32);
            let extent = extents.iter().flat_map(|all| all.iter());
            let extent =
                extent.filter(|_| command == GET).find(|extent| extent.range().contains(&addr));
            let Some(extent) = extent else {
                return Err(std::io::Error::other("these pages cannot be had"));
            };
            let len = (extent.range().end - addr).min(pages * PAGE as u64);
            let words = [u64::from(PAGES), len / PAGE as u64, addr, task];
            for (at, word) in head.chunks_exact_mut(8).zip(words) {
                at.copy_from_slice(&word.to_le_bytes());
            }
            let offset = extent.offset + (addr - extent.start);
            let _ = send.send((at, Due::Pages(head, offset, len as usize)));
        }
        drop(send);
        Ok(())
    })
}
