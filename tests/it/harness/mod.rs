//! What the tests stand on: a world of its own for each, and the project's processes in it.

mod api;
mod broker_proxy;
mod certificates;
mod clients;
mod collector;
mod dumps;
mod faults;
mod gate;
mod http;
mod load;
mod locking;
mod masters;
mod orders;
mod private_kafka;
mod process;
mod progress;
mod prometheus;
mod provider;
mod proxy;
mod raw;
mod registry;
mod rival;
mod secure_kafka;
mod servers;
mod stacks;
mod steps;
mod stub;
mod tamper;
mod token_endpoint;
mod tokens;
mod topics;
mod wait;
mod world;

pub(crate) use api::{Answer, Api};
pub(crate) use broker_proxy::BrokerProxy;
pub(crate) use certificates::{Authority, Subject};
pub(crate) use clients::Program;
pub(crate) use collector::{Collector, Span, Trace};
pub(crate) use dumps::{database, dump, restore};
pub(crate) use faults::{proxies_of_masters, readiness};
pub(crate) use gate::Gate;
pub(crate) use http::{http_client, http_client_builder, http_get};
pub(crate) use load::{SteadyLoad, body, decides_more, place_all};
pub(crate) use locking::{products, products_named};
pub(crate) use masters::Masters;
pub(crate) use orders::new_order;
pub(crate) use private_kafka::PrivateKafka;
pub(crate) use process::{Cli, Role, blocking, free_address};
pub(crate) use prometheus::Prometheus;
pub(crate) use provider::{AUDIENCE, Answering, ISSUER, IssuerKey, Provider, claims, in_seconds};
pub(crate) use proxy::Proxy;
pub(crate) use raw::Raw;
pub(crate) use registry::Registry;
pub(crate) use rival::Rival;
pub(crate) use secure_kafka::{PASSWORD, SecureKafka, USER};
pub(crate) use servers::Server;
pub(crate) use stacks::{each_stack, on_each_database, on_every_stack, on_two_stacks, tests_on};
pub(crate) use steps::{
    acquire, aged, decide, deliver, is_held_up_at, made_ago, made_at, order_lines, random_orders,
    release, try_step,
};
pub(crate) use stub::{Reply, Stub};
pub(crate) use token_endpoint::{Issuing, SECRET, TokenEndpoint};
pub(crate) use tokens::{TokensFile, bearer, token_line};
pub(crate) use topics::{delivered, header};
pub(crate) use wait::{
    stays, unchanged_for, wait_for, wait_for_within, wait_until, wait_until_within,
};
pub(crate) use world::{Database, PATIENCE, Strategy, World, lines};
