//! The bus of a fleet as the command line and the configuration state it: which broker, which fleet, whose keys.

use crate::bus::address::{AmqpUrl, BusUrl, Login, RedisUrl, Secret};
use crate::bus::condition::Condition;
use crate::bus::ends::{AgentSide, CoordinatorSide};
use crate::bus::envelope::{FleetName, Seal};
use crate::bus::{amqp, redis};
use crate::cli::{BusArgs, BusPasswords, Surroundings};
use crate::clock::Clock;
use crate::config::Config;
use crate::keys::{KeyPlace, Role};
use anyhow::Context as _;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use unstale_protocol::coordinator::Reports;
use unstale_protocol::ids::HostName;

/// Longest file of a password or of certificates.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// What one end of a network bus needs.
#[derive(Debug)]
pub(in crate::commands) struct Wire {
    pub(in crate::commands) fleet: FleetName,
    /// Where, for logs and answers: without a password.
    pub(in crate::commands) url: String,
    access: Access,
}

/// How the broker is reached.
#[derive(Debug)]
enum Access {
    Redis(redis::Access),
    Amqp(amqp::Access),
}

impl Wire {
    /// Finds out what is stated: a flag wins over its variable, over the file.
    ///
    /// # Errors
    /// Where no network bus is named, or a file that is needed cannot be read.
    pub(in crate::commands) fn find(args: &BusArgs, config: &Config) -> anyhow::Result<Self> {
        let mut wire = Self::find_for_look(args.bus.as_ref(), &args.passwords, config)?;
        if let Some(fleet) = &args.fleet {
            wire.fleet = fleet.clone();
        }
        match &mut wire.access {
            Access::Redis(access) => access.fail_fast = args.fail_fast,
            Access::Amqp(access) => access.fail_fast = args.fail_fast,
        }
        Ok(wire)
    }

    /// The same for who only looks at the broker.
    ///
    /// # Errors
    /// Where no network bus is named, or a file that is needed cannot be read.
    pub(in crate::commands) fn find_for_look(
        stated: Option<&Secret>,
        passwords: &BusPasswords,
        config: &Config,
    ) -> anyhow::Result<Self> {
        // Whatever speaks TLS to a broker uses this one provider; that somebody has chosen it before is no error.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let url = match stated {
            // Not read with the other arguments, which are repeated where they are wrong: it may hold a password.
            Some(stated) => {
                stated.0.parse().map_err(|why: String| anyhow::anyhow!("the URL of the bus is wrong: {why}"))?
            }
            None => config.bus.url.clone(),
        };
        let in_url = match &url {
            BusUrl::Redis(url) => &url.login,
            BusUrl::Amqp(url) => &url.login,
            BusUrl::Embedded => anyhow::bail!(
                "no bus is named: give --bus redis://HOST:6379, or set `url` in `[bus]`; for one host alone there is `unstale up`"
            ),
        };
        let stated = in_url.password.as_ref().or(passwords.broker.as_ref());
        let login = Login { password: password(stated, &config.bus.password_file)?, ..in_url.clone() };
        let read = |path: &Path| -> anyhow::Result<Option<Vec<u8>>> {
            if path.as_os_str().is_empty() { Ok(None) } else { read_bounded(path).map(Some) }
        };
        let identity = match (read(&config.bus.cert_file)?, read(&config.bus.key_file)?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => anyhow::bail!("`cert_file` and `key_file` of `[bus]` need each other"),
        };
        let (authority, fail_fast) = (read(&config.bus.ca_file)?, false);
        let (url, access) = match url {
            BusUrl::Redis(url) => {
                let username = Some(config.bus.sentinel_user.clone()).filter(|name| !name.is_empty());
                let password = password(passwords.sentinels.as_ref(), &config.bus.sentinel_password_file)?;
                let url = RedisUrl { login, for_sentinels: Login { username, password }, ..url };
                (url.to_string(), Access::Redis(redis::Access { url, authority, identity, fail_fast }))
            }
            BusUrl::Amqp(url) => {
                let url = AmqpUrl { login, ..url };
                (url.to_string(), Access::Amqp(amqp::Access { url, authority, identity, fail_fast }))
            }
            BusUrl::Embedded => anyhow::bail!("no bus is named"),
        };
        Ok(Self { fleet: config.bus.fleet.clone(), url, access })
    }

    /// Returns whom this bus brings the reports of hosts.
    pub(in crate::commands) fn reports(&self) -> Reports {
        match self.access {
            Access::Redis(_) => Reports::ToAll,
            // They come out of one queue, which only who holds the lock reads.
            Access::Amqp(_) => Reports::ToLeader,
        }
    }

    /// Connects, and says what of the broker's condition matters.
    ///
    /// # Errors
    /// Why it cannot be reached.
    pub(in crate::commands) async fn look(&self) -> Result<Vec<Condition>, String> {
        match &self.access {
            Access::Redis(access) => redis::look(access).await,
            Access::Amqp(access) => amqp::look(access, &amqp::Names::new(&self.fleet)).await,
        }
    }

    /// Returns whom this end believes and in whose name it speaks.
    ///
    /// # Errors
    /// Where keys are missing or cannot be used, unless nothing is to be signed.
    pub(in crate::commands) fn seal(
        &self,
        args: &BusArgs,
        config: &Config,
        surroundings: &Surroundings,
        role: Role,
    ) -> anyhow::Result<Seal> {
        if args.insecure_bus {
            tracing::warn!(
                bus = self.url,
                "NOTHING IS SIGNED: whoever reaches the bus can have every worker restarted"
            );
            return Ok(Seal::bare(self.fleet.clone()));
        }
        let stated = args.keys.keys.as_deref().or(Some(&config.bus.keys));
        let place = KeyPlace::choose(stated, surroundings)?;
        Seal::with_keys(self.fleet.clone(), place, role).context("cannot speak on the bus")
    }

    /// Carries the coordinator's messages until its end is gone.
    ///
    /// # Errors
    /// Where the bus cannot be used at the start and that is to be an error.
    pub(in crate::commands) async fn carry_coordinator(
        self,
        side: CoordinatorSide,
        clock: Clock,
    ) -> anyhow::Result<()> {
        match self.access {
            Access::Redis(access) => redis::coordinator(side, access, redis::Names::new(&self.fleet), clock).await,
            Access::Amqp(access) => amqp::coordinator(side, access, amqp::Names::new(&self.fleet), clock).await,
        }
    }

    /// Carries an agent's messages until its end is gone.
    ///
    /// # Errors
    /// Where the bus cannot be used at the start and that is to be an error.
    pub(in crate::commands) async fn carry_agent(self, side: AgentSide, host: HostName) -> anyhow::Result<()> {
        match self.access {
            Access::Redis(access) => redis::agent(side, access, redis::Names::new(&self.fleet), host).await,
            Access::Amqp(access) => amqp::agent(side, access, amqp::Names::new(&self.fleet), host).await,
        }
    }
}

fn read_bounded(path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read `{}`, which `[bus]` names", path.display());
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_MAX_BYTES).read_to_end(&mut bytes)).with_context(cannot)?;
    Ok(bytes)
}

/// Returns the password that is stated, or that of a file, where one is named.
fn password(stated: Option<&Secret>, path: &Path) -> anyhow::Result<Option<Secret>> {
    if stated.is_some() || path.as_os_str().is_empty() {
        return Ok(stated.cloned());
    }
    let cannot = || format!("cannot read the password file `{}`", path.display());
    let mode = std::fs::metadata(path).with_context(cannot)?.mode();
    if mode & 0o077 != 0 {
        anyhow::bail!(
            "the password file `{0}` is not safe: its mode is {1:03o}; `chmod 600 {0}`",
            path.display(),
            mode & 0o777
        );
    }
    let text = String::from_utf8(read_bounded(path)?).ok().context("the password is not text").with_context(cannot)?;
    Ok(Some(Secret(text.trim_end_matches(['\n', '\r']).to_owned())))
}
