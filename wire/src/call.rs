//! How a service's calls are declared: one struct per request, one reply type each, two enums for the wire.
//!
//! A caller writes `om.call(GetBucket { .. })` and gets a `BucketInfo`; transports and servers move the enums
//! [`crate::om::OmRequest`] and so on, and need no code per call.

/// Declares the calls of a service: `Request => Reply` pairs become a request enum, a reply enum and a `Call` trait.
macro_rules! service_calls {
    (
        $(#[$call_doc:meta])* trait $call:ident;
        $(#[$request_doc:meta])* enum $request:ident;
        $(#[$reply_doc:meta])* enum $reply:ident;
        $($name:ident => $answer:ty,)+
    ) => {
        $(#[$request_doc])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[allow(clippy::large_enum_variant, reason = "requests are made and consumed once; boxing would cost a call more")]
        pub enum $request {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)+
        }

        impl $request {
            /// The call's name, for logs and metrics.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)+ }
            }
        }

        $(#[$reply_doc])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[allow(clippy::large_enum_variant, reason = "replies are made and consumed once; boxing would cost a call more")]
        pub enum $reply {
            $(#[doc = concat!("Answer to [`", stringify!($name), "`].")] $name($answer),)+
        }

        $(#[$call_doc])*
        pub trait $call: Into<$request> + Send {
            /// What a success answers.
            type Reply: Send;

            /// Takes the reply out of the enum; None if a peer answered another question.
            fn unwrap_reply(reply: $reply) -> Option<Self::Reply>;
        }

        $(
            impl From<$name> for $request {
                fn from(request: $name) -> Self {
                    Self::$name(request)
                }
            }

            impl $call for $name {
                type Reply = $answer;

                fn unwrap_reply(reply: $reply) -> Option<$answer> {
                    match reply {
                        $reply::$name(answer) => Some(answer),
                        _ => None,
                    }
                }
            }
        )+
    };
}

pub(crate) use service_calls;
