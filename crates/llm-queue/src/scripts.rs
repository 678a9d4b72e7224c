use deadpool_redis::redis::Script;

/// The Lua scripts. Each touches the keys of one priority alone, and all are in `KEYS`.
pub(crate) struct Scripts {
    pub(crate) ensure_group: Script,
    pub(crate) send: Script,
    pub(crate) knows: Script,
    pub(crate) reclaim: Script,
    pub(crate) heartbeat: Script,
    pub(crate) hold: Script,
    pub(crate) finish: Script,
    pub(crate) hand_back: Script,
    pub(crate) stats: Script,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            ensure_group: Script::new(concat!(include_str!("scripts/group.lua"), "ensure_group()\n")),
            send: Script::new(concat!(include_str!("scripts/group.lua"), include_str!("scripts/send.lua"))),
            knows: Script::new(include_str!("scripts/knows.lua")),
            reclaim: Script::new(include_str!("scripts/reclaim.lua")),
            heartbeat: Script::new(include_str!("scripts/heartbeat.lua")),
            hold: Script::new(include_str!("scripts/hold.lua")),
            finish: Script::new(include_str!("scripts/finish.lua")),
            hand_back: Script::new(include_str!("scripts/hand_back.lua")),
            stats: Script::new(include_str!("scripts/stats.lua")),
        }
    }
}
