//! What is measured of the calls of a server.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, UpDownCounter};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;
use waybill_domain::bounds::CALL_SECONDS;

/// Stands for what this server doesn't have: callers may ask for anything, and a label has to
/// have few values.
const OTHER: &str = "other";

/// Measures calls. Clones share the instruments.
#[derive(Debug, Clone)]
pub(super) struct CallMeter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    calls: Counter<u64>,
    duration: Histogram<f64>,
    in_flight: UpDownCounter<i64>,
    /// The labels of each path.
    methods: HashMap<String, Labels>,
}

#[derive(Debug, Clone)]
struct Labels {
    service: KeyValue,
    method: KeyValue,
}

/// A call under way. Say how it ended, once.
#[derive(Debug)]
pub(super) struct Measured {
    meter: CallMeter,
    labels: Labels,
}

impl CallMeter {
    /// Makes the instruments. Methods are those that `descriptors`, encoded sets of files, name.
    pub(super) fn new(meter: &Meter, services: &[&str], descriptors: &[&[u8]]) -> Self {
        let sets = descriptors.iter().filter_map(|encoded| FileDescriptorSet::decode(*encoded).ok());
        let methods = sets.flat_map(|set| set.file).flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let name = format!("{package}.{}", service.name());
                service.method.into_iter().map(move |method| (name.clone(), method.name().to_owned()))
            })
        });
        let methods = methods
            .filter(|(service, _)| services.contains(&service.as_str()))
            .map(|(service, method)| (format!("/{service}/{method}"), Labels::new(service, method)))
            .collect();
        Self(Arc::new(Inner {
            calls: meter
                .u64_counter("waybill_grpc_server_calls_total")
                .with_description("Calls that were answered, by status code")
                .build(),
            duration: meter
                .f64_histogram("waybill_grpc_server_call_duration_seconds")
                .with_description("From a call's headers to its status")
                .with_boundaries(CALL_SECONDS.to_vec())
                .build(),
            in_flight: meter
                .i64_up_down_counter("waybill_grpc_server_calls_in_flight")
                .with_description("Calls that were not answered yet")
                .build(),
            methods,
        }))
    }

    pub(super) fn begin(&self, path: &str) -> Measured {
        let labels = self.0.methods.get(path).cloned();
        let labels = labels.unwrap_or_else(|| Labels::new(OTHER.to_owned(), OTHER.to_owned()));
        self.0.in_flight.add(1, std::slice::from_ref(&labels.service));
        Measured { meter: self.clone(), labels }
    }
}

impl Labels {
    fn new(service: String, method: String) -> Self {
        Self { service: KeyValue::new("service", service), method: KeyValue::new("method", method) }
    }
}

impl Measured {
    pub(super) fn end(&self, code: Code, elapsed: Duration) {
        let Labels { service, method } = self.labels.clone();
        let inner = &self.meter.0;
        inner.in_flight.add(-1, std::slice::from_ref(&service));
        inner.duration.record(elapsed.as_secs_f64(), &[service.clone(), method.clone()]);
        inner.calls.add(1, &[service, method, KeyValue::new("code", name(code))]);
    }
}

/// Returns the code's name as the protocol has it.
const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
