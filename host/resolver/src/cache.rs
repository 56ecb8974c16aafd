//! Answers of one guest, for as long as they are good. Each guest has its own: from how fast an answer comes, none
//! learns what another one asked.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Record, RecordType};

use crate::domain::Domain;

/// Answers that are kept of a guest.
const MOST: usize = 256;

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether there is such a name.
    pub code: ResponseCode,
    /// What there is.
    pub records: Vec<Record>,
    /// Who says that there is no more.
    pub authorities: Vec<Record>,
    /// What it opens.
    pub addresses: Vec<Ipv4Addr>,
}

#[derive(Debug)]
struct Kept {
    answer: Answer,
    since: Instant,
    until: Instant,
}

/// Answers by question.
#[derive(Debug, Default)]
pub struct Cache(HashMap<(Domain, RecordType), Kept>);

impl Cache {
    /// An answer that is still good, with the seconds it is good for taken off those it had; and these seconds.
    #[must_use]
    pub fn find(&self, domain: &Domain, kind: RecordType, now: Instant) -> Option<(Answer, u32)> {
        let kept = self
            .0
            .get(&(domain.clone(), kind))
            .filter(|kept| kept.until > now)?;
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let passed = seconds(now.saturating_duration_since(kept.since));
        let mut answer = kept.answer.clone();
        for record in answer.records.iter_mut().chain(&mut answer.authorities) {
            record.ttl = record.ttl.saturating_sub(passed).max(1);
        }
        Some((answer, seconds(kept.until.saturating_duration_since(now)).max(1)))
    }

    /// Keeps an answer. Of too many, the one that ends first goes.
    pub fn keep(&mut self, domain: Domain, kind: RecordType, answer: Answer, seconds: u32, now: Instant) {
        if self.0.len() >= MOST {
            self.0.retain(|_, kept| kept.until > now);
        }
        if self.0.len() >= MOST
            && let Some(first) = self
                .0
                .iter()
                .min_by_key(|(_, kept)| kept.until)
                .map(|(question, _)| question.clone())
        {
            self.0.remove(&first);
        }
        let kept = Kept {
            answer,
            since: now,
            until: now + Duration::from_secs(u64::from(seconds)),
        };
        self.0.insert((domain, kind), kept);
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData};

    use super::*;

    fn answer(ttl: u32) -> Answer {
        let record = Record::from_rdata(Name::root(), ttl, RData::A(A::new(1, 1, 1, 1)));
        Answer {
            code: ResponseCode::NoError,
            records: vec![record],
            authorities: Vec::new(),
            addresses: Vec::new(),
        }
    }

    #[test]
    fn an_answer_grows_old_and_ends_and_there_are_never_too_many() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let one = Domain::plain("a.com");
        cache.keep(one.clone(), RecordType::A, answer(60), 60, now);
        let (found, left) = cache.find(&one, RecordType::A, at(20)).unwrap();
        assert_eq!((found.records[0].ttl, left), (40, 40));
        assert!(cache.find(&one, RecordType::AAAA, at(20)).is_none());
        assert!(cache.find(&one, RecordType::A, at(60)).is_none());
        for number in 0..2000 {
            cache.keep(
                Domain::plain(&format!("n{number}.com")),
                RecordType::A,
                answer(1),
                1000 + number,
                now,
            );
        }
        assert_eq!(cache.0.len(), MOST);
        assert!(
            cache
                .find(&Domain::plain("n1999.com"), RecordType::A, now)
                .is_some()
        );
    }
}
