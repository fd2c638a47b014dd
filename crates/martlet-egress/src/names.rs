//! The name server that guests ask: it knows the names that the rules allow, and remembers what addresses it has told.
//!
//! DNS over UDP (RFC 1035), questions for IPv4 addresses. A name that is not allowed is refused; it is asked of nobody.

use crate::rules::{self, Rules, is_outside};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// For so long a guest may keep an address.
const TTL_S: u32 = 60;
/// And for so long it may use it: some keep it longer than they should.
const KEPT: Duration = Duration::from_secs(3600);
/// Addresses that are remembered; of more the one that was told longest ago is forgotten.
const ADDRESSES_MAX: usize = 4096;
/// Addresses of an answer: more do not fit the smallest answer that all take.
const ANSWERS_MAX: usize = 16;

/// What a guest asks.
#[derive(Debug)]
pub struct Question {
    asked: Message,
    /// As the rules compare it.
    pub name: String,
}

/// What to do about a datagram of a guest.
#[derive(Debug)]
pub enum Asked {
    /// Find out the addresses of a name, and [`Question::answer`].
    Look(Question),
    /// Send this.
    Answer(Vec<u8>),
    /// The same; it is a name that is not allowed.
    Refused {
        /// Which, as far as it can be one.
        name: String,
        /// What to send.
        answer: Vec<u8>,
    },
    /// Nothing: it is no question.
    Nothing,
}

/// Reads what a guest asks.
pub fn asked(datagram: &[u8], rules: &Rules) -> Asked {
    let Ok(asked) = Message::from_vec(datagram) else {
        return Asked::Nothing;
    };
    if asked.metadata.message_type != MessageType::Query {
        return Asked::Nothing;
    }
    let query = match &asked.queries[..] {
        [query] if asked.metadata.op_code == OpCode::Query && query.query_class() == DNSClass::IN => {
            query.clone()
        }
        _ => return answered(&asked, ResponseCode::NotImp, &[]),
    };
    let name = rules::name(&query.name().to_ascii()).unwrap_or_default();
    if name.is_empty() || !rules.name(&name) {
        let answer = encoded(&asked, ResponseCode::Refused, &[]);
        return Asked::Refused { name, answer };
    }
    match query.query_type() {
        RecordType::A => Asked::Look(Question { asked, name }),
        // There may be such records; that there are none is what this network is like.
        _ => answered(&asked, ResponseCode::NoError, &[]),
    }
}

impl Question {
    /// Its answer, of what was found; nothing, if it could not be found out.
    pub fn answer(&self, found: Option<&[Ipv4Addr]>) -> Vec<u8> {
        let code = match found {
            None => ResponseCode::ServFail,
            Some([]) => ResponseCode::NXDomain,
            Some(_) => ResponseCode::NoError,
        };
        encoded(&self.asked, code, found.unwrap_or_default())
    }
}

fn answered(asked: &Message, code: ResponseCode, addresses: &[Ipv4Addr]) -> Asked {
    Asked::Answer(encoded(asked, code, addresses))
}

fn encoded(asked: &Message, code: ResponseCode, addresses: &[Ipv4Addr]) -> Vec<u8> {
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.response_code = code;
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    let query: Option<Query> = asked.queries.first().cloned();
    if let Some(query) = &query {
        answer.add_query(query.clone());
        for address in addresses.iter().take(ANSWERS_MAX) {
            let data = RData::A(A(*address));
            answer.add_answer(Record::from_rdata(query.name().clone(), TTL_S, data));
        }
    }
    answer.to_vec().unwrap_or_default()
}

/// Which addresses a guest was told for which names.
#[derive(Debug, Default)]
pub struct Names(HashMap<Ipv4Addr, HashMap<String, Instant>>);

impl Names {
    /// It is told these; those of them that it may be.
    pub fn tell(&mut self, name: &str, addresses: &[Ipv4Addr], now: Instant) -> Vec<Ipv4Addr> {
        let told: Vec<Ipv4Addr> = addresses
            .iter()
            .copied()
            .filter(|address| is_outside(*address))
            .take(ANSWERS_MAX)
            .collect();
        for address in &told {
            if !self.0.contains_key(address) && self.0.len() >= ADDRESSES_MAX {
                self.forget_oldest();
            }
            self.0.entry(*address).or_default().insert(name.to_owned(), now);
        }
        told
    }

    /// The names that have led to an address.
    pub fn of(&self, address: Ipv4Addr, now: Instant) -> impl Iterator<Item = &str> {
        let names = self.0.get(&address).into_iter().flatten();
        names
            .filter(move |(_, told)| now.saturating_duration_since(**told) < KEPT)
            .map(|(name, _)| name.as_str())
    }

    fn forget_oldest(&mut self) {
        let latest = |names: &HashMap<String, Instant>| names.values().max().copied();
        let oldest = self.0.iter().min_by_key(|(_, names)| latest(names));
        if let Some(oldest) = oldest.map(|(address, _)| *address) {
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(name.parse::<Name>().unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn list() -> Rules {
        ["pypi.org:443", "*.debian.org"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect()
    }

    fn code(answer: &[u8]) -> ResponseCode {
        Message::from_vec(answer).unwrap().metadata.response_code
    }

    #[test]
    fn allowed_names_are_looked_up_and_others_are_refused() {
        let Asked::Look(question) = asked(&question("PyPI.org.", RecordType::A), &list()) else {
            panic!("it may be asked");
        };
        assert_eq!(question.name, "pypi.org");
        let addresses = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
        let answer = Message::from_vec(&question.answer(Some(&addresses))).unwrap();
        assert_eq!((answer.answers.len(), answer.queries.len()), (2, 1));
        assert_eq!(code(&question.answer(Some(&[]))), ResponseCode::NXDomain);
        assert_eq!(code(&question.answer(None)), ResponseCode::ServFail);
    }

    #[test]
    fn what_is_not_allowed_is_asked_of_nobody() {
        for name in ["evil.example.", "debian.org.", "secret.pypi.org."] {
            match asked(&question(name, RecordType::A), &list()) {
                Asked::Refused { answer, .. } => assert_eq!(code(&answer), ResponseCode::Refused),
                other => panic!("{other:?}"),
            }
        }
        match asked(&question("pypi.org.", RecordType::AAAA), &list()) {
            Asked::Answer(answer) => assert_eq!(code(&answer), ResponseCode::NoError),
            other => panic!("{other:?}"),
        }
        assert!(matches!(asked(b"", &list()), Asked::Nothing));
        let answer = Message::response(1, OpCode::Query).to_vec().unwrap();
        assert!(
            matches!(asked(&answer, &list()), Asked::Nothing),
            "no loop of answers"
        );
    }

    #[test]
    fn addresses_are_remembered_for_a_while_and_not_without_end() {
        let (mut names, begun) = (Names::default(), Instant::now());
        let outside = Ipv4Addr::new(192, 0, 2, 1);
        let told = names.tell("pypi.org", &[outside, Ipv4Addr::LOCALHOST], begun);
        assert_eq!(told, [outside], "nothing leads to this host");
        names.tell("deb.debian.org", &[outside], begun + KEPT / 2);
        assert_eq!(names.of(outside, begun).count(), 2);
        assert_eq!(
            names.of(outside, begun + KEPT).collect::<Vec<_>>(),
            ["deb.debian.org"]
        );
        for number in 0..2 * ADDRESSES_MAX as u32 {
            let address = Ipv4Addr::from(0xc000_0000 + number);
            names.tell("a.debian.org", &[address], begun + KEPT / 2);
        }
        assert!(names.0.len() <= ADDRESSES_MAX);
    }

    proptest! {
        #[test]
        fn no_datagram_harms_it(datagram in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = asked(&datagram, &list());
        }
    }
}
