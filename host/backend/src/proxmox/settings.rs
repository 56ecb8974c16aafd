//! Where the API is, who we are there, and why we believe that it is the one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use agentlab_protocol::secret::SecretText;

use crate::pve::PveOptions;

/// PVE's own port.
const PORT: u16 = 8006;

/// Everything the REST back end is told.
#[derive(Debug, Clone)]
pub struct ProxmoxSettings {
    /// `https://host:8006`.
    pub url: ApiUrl,
    /// `user@realm!name=secret`.
    pub token: ApiToken,
    /// Why the server's certificate is believed.
    pub trust: Trust,
    /// Where machines are made.
    pub pve: PveOptions,
    /// How long one call may take. pveproxy itself gives up after 30 s with a 596, which says more than our own end.
    pub call_patience: Duration,
}

impl ProxmoxSettings {
    /// The defaults for a server, a token and a node.
    #[must_use]
    pub fn new(url: ApiUrl, token: ApiToken, trust: Trust, pve: PveOptions) -> Self {
        Self {
            url,
            token,
            trust,
            pve,
            call_patience: Duration::from_secs(40),
        }
    }
}

/// Address of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiUrl {
    /// Name or address, without brackets.
    pub host: String,
    /// 8006 where none is given.
    pub port: u16,
}

impl ApiUrl {
    /// Whether it is this host.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let address = self.host.parse::<std::net::IpAddr>();
        self.host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    }

    /// Host and port as they stand in a `Host` header.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl FromStr for ApiUrl {
    type Err = String;

    /// `https://host`, with port or without, as copied from a browser or with `/api2/json` behind it.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("https://") else {
            return Err("must begin with https://: a token is never sent in the clear".to_owned());
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !matches!(path.trim_end_matches('/'), "" | "api2" | "api2/json") {
            return Err("must end after the port: the path is always /api2/json".to_owned());
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest
                    .split_once(']')
                    .ok_or_else(|| "has a `[` without `]`".to_owned())?;
                host.parse::<std::net::Ipv6Addr>()
                    .map_err(|_| "must have an IPv6 address between `[` and `]`".to_owned())?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
        if host.is_empty() || !host.bytes().all(named) {
            return Err("must name a host, such as https://127.0.0.1:8006".to_owned());
        }
        let port = match port {
            None => PORT,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => port,
                Ok(_) | Err(_) => return Err("has a port that is no number from 1 to 65535".to_owned()),
            },
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// An API token. Never printed; the part before `=` is its name and may be.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken(SecretText);

impl ApiToken {
    /// `user@realm!name`.
    #[must_use]
    pub fn name(&self) -> &str {
        let text = self.0.expose();
        text.split_once('=').map_or("", |(name, _)| name)
    }

    pub(crate) fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=[redacted]", self.name())
    }
}

impl TryFrom<&SecretText> for ApiToken {
    type Error = String;

    fn try_from(text: &SecretText) -> Result<Self, String> {
        // As it stands in the header, which is how people copy it.
        let text = text.expose().trim();
        let text = text.strip_prefix("PVEAPIToken=").unwrap_or(text);
        let shape =
            || "must be user@realm!name=secret, as `pveum user token add` prints its two parts".to_owned();
        let (name, secret) = text.split_once('=').ok_or_else(shape)?;
        let (user, token) = name.split_once('!').ok_or_else(shape)?;
        let (login, realm) = user.rsplit_once('@').ok_or_else(shape)?;
        let is_whole =
            ![login, realm, token, secret].contains(&"") && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_whole {
            return Err(shape());
        }
        Ok(Self(SecretText::new(text.to_owned())))
    }
}

/// Why a certificate is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// An authority that this host's system trusts has signed it.
    SystemRoots,
    /// One of these certificates has signed it, or is it. PEM.
    CaPem(String),
    /// It is this one.
    Fingerprint(Fingerprint),
    /// It is not looked at. Only for a server that is this host.
    ThisHost,
}

/// SHA-256 of a certificate, as PVE's own interface shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    /// `AA:BB:...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    /// 64 hexadecimal digits, with or without colons, in either case.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "must be a SHA-256 fingerprint: 32 bytes in hexadecimal, such as AA:BB:...".to_owned();
        let digits: Vec<u32> = text
            .trim()
            .chars()
            .filter(|letter| *letter != ':')
            .map(|letter| letter.to_digit(16).ok_or_else(wrong))
            .collect::<Result<_, _>>()?;
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair
                .iter()
                .fold(0u8, |sum, digit| (sum << 4) | u8::try_from(*digit).unwrap_or(0));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_url_is_taken_as_people_copy_it() {
        for (text, host, port) in [
            ("https://localhost:8006", "localhost", 8006),
            ("https://pve8", "pve8", 8006),
            ("https://10.0.0.1:443/api2/json/", "10.0.0.1", 443),
            ("https://[::1]:8006/", "::1", 8006),
        ] {
            let url: ApiUrl = text.parse().unwrap();
            assert_eq!((url.host.as_str(), url.port), (host, port), "{text}");
        }
        for text in [
            "http://localhost:8006",
            "https://",
            "https://a:b",
            "https://u:p@host",
            "https://h/#v1",
            "https://[::1",
        ] {
            assert!(text.parse::<ApiUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_shows_its_name_and_never_its_secret() {
        let token = |text: &str| ApiToken::try_from(&SecretText::new(text.to_owned()));
        let ours = token(" PVEAPIToken=agentlab@pve!lp=0d08f8bc-0a12\n").unwrap();
        assert_eq!(ours.expose(), "agentlab@pve!lp=0d08f8bc-0a12");
        assert_eq!(format!("{ours:?}"), "agentlab@pve!lp=[redacted]");
        for text in [
            "",
            "root@pam=1",
            "root!x=1",
            "root@pam!x=",
            "root@pam!x=1 2",
            "a@b!c=\r\nX: y",
        ] {
            assert!(token(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_it_is_shown() {
        let shown = Fingerprint([0xab; 32]).to_string();
        assert_eq!(shown.parse(), Ok(Fingerprint([0xab; 32])));
        assert_eq!(
            shown.replace(':', "").to_lowercase().parse(),
            Ok(Fingerprint([0xab; 32]))
        );
        assert!("AB:CD".parse::<Fingerprint>().is_err());
        assert!("zz".repeat(32).parse::<Fingerprint>().is_err());
    }
}
