//! The control socket as a service manager hands it over (sd_listen_fds(3)).

use std::io;
use std::os::unix::net::UnixListener;

/// What the socket unit calls it: `FileDescriptorName=control`.
const NAME: &str = "control";

/// Takes the socket over, if there is one. Call it first thing: descriptors are only ours until something else opens
/// files, and the environment may only be changed while there is one thread.
///
/// # Errors
/// Descriptors were handed over, and none or not exactly one of them is a Unix stream socket named `control`.
pub fn take_control_socket() -> io::Result<Option<UnixListener>> {
    // Names may be there although the descriptors are another process's.
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(None);
    }
    let names: Vec<String> = sd_notify::listen_fds_with_names()?
        .map(|(_, name)| name)
        .collect();
    let index = position(&names)?;
    let listener = listenfd::ListenFd::from_env().take_unix_listener(index)?;
    if let Some(listener) = &listener {
        listener.set_nonblocking(true)?;
    }
    Ok(listener)
}

/// Listening on the wrong one of several sockets would open the API to whoever may connect there.
fn position(names: &[String]) -> io::Result<usize> {
    let mut found = names.iter().enumerate().filter(|(_, name)| *name == NAME);
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Ok(index),
        (None, _) | (_, Some(_)) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the service manager handed over {} sockets ({}), and exactly one named `{NAME}` is expected; set \
                 FileDescriptorName={NAME} in the socket unit",
                names.len(),
                names.join(", ")
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_socket_must_be_named_control() {
        let names = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(position(&names("metrics control")).unwrap(), 1);
        for wrong in ["unknown", "control control", "Control"] {
            assert!(position(&names(wrong)).is_err(), "{wrong}");
        }
    }
}
