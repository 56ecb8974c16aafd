//! A name server that knows one name, and somebody who answers at its address. `NAME ADDRESS PORT`; asked on port 53 of
//! that address, over UDP.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what| arguments.next().with_context(|| format!("{what} is missing"));
    let (name, address, port) = (next("the name")?, next("the address")?, next("the port")?);
    let (address, port): (Ipv4Addr, u16) = (address.parse()?, port.parse()?);
    let questions = UdpSocket::bind((address, 53)).context("binding port 53")?;
    let callers = TcpListener::bind((address, port)).context("binding the caller's port")?;
    std::thread::scope(|threads| {
        threads.spawn(|| callers.incoming().for_each(drop));
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = questions.recv_from(&mut buffer) {
            if let Some(answer) = answer(buffer.get(..length).unwrap_or_default(), &name, address) {
                // Whoever gave up has no use for it.
                let _ = questions.send_to(&answer, from);
            }
        }
    });
    Ok(())
}

/// Header and question as they came, and an address when the name is the one.
fn answer(question: &[u8], name: &str, address: Ipv4Addr) -> Option<Vec<u8>> {
    let wanted: Vec<u8> = name
        .split('.')
        .flat_map(|label| {
            [
                u8::try_from(label.len()).ok().into_iter().collect(),
                label.as_bytes().to_vec(),
            ]
            .concat()
        })
        .chain([0])
        .collect();
    let asked = question.get(12..)?;
    let end = asked.iter().position(|byte| *byte == 0)? + 1;
    let known = asked.get(..end)?.eq_ignore_ascii_case(&wanted);
    let mut message = question.get(..2)?.to_vec();
    let code = if known { 0 } else { 3 };
    message.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(known), 0, 0, 0, 0]);
    message.extend(asked.get(..end + 4)?);
    if known {
        // The name as in the question, an address of the Internet, for a minute.
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend(address.octets());
    }
    Some(message)
}
