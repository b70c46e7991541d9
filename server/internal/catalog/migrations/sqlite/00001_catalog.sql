-- +goose Up

-- Times are microseconds since 1970 UTC; 0 stands for none.

CREATE TABLE organizations (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
);

CREATE TABLE api_keys (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    label           TEXT NOT NULL,
    secret_hash     BLOB NOT NULL,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    revoked_at      INTEGER NOT NULL
);
CREATE INDEX api_keys_organization ON api_keys (organization_id);

CREATE TABLE workflow_grants (
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    workflow_id     TEXT NOT NULL, -- or * for all
    created_at      INTEGER NOT NULL,
    PRIMARY KEY (organization_id, workflow_id)
) WITHOUT ROWID;

CREATE TABLE packages (
    id           TEXT PRIMARY KEY,
    workflow_id  TEXT NOT NULL,
    job_id       TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'failed')),
    entries      INTEGER NOT NULL,
    size         INTEGER NOT NULL,
    digest       BLOB,
    failure      TEXT, -- JSON
    bytes_total  INTEGER NOT NULL,
    bytes_done   INTEGER NOT NULL,
    run          INTEGER NOT NULL, -- changes with each new start
    worker       TEXT NOT NULL,    -- who works on it; empty for nobody
    lease_until  INTEGER NOT NULL, -- a pending package needs no attention before
    started_at   INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    requested_at INTEGER NOT NULL
);
CREATE INDEX packages_job ON packages (workflow_id, job_id);
CREATE INDEX packages_created ON packages (created_at);
CREATE INDEX packages_requested ON packages (requested_at);
CREATE INDEX packages_lease ON packages (lease_until) WHERE state = 'pending';

-- Plans are large, and must not be rewritten whenever a package's state is.
CREATE TABLE package_plans (
    package_id TEXT PRIMARY KEY REFERENCES packages (id) ON DELETE CASCADE,
    plan       BLOB NOT NULL
);

CREATE TABLE asset_checksums (
    object_key TEXT NOT NULL,
    version    TEXT NOT NULL,
    size       INTEGER NOT NULL,
    crc32      INTEGER NOT NULL,
    sha256     BLOB,
    PRIMARY KEY (object_key, version)
) WITHOUT ROWID;

-- How far the reading of large assets has come.
CREATE TABLE asset_cursors (
    object_key TEXT NOT NULL,
    version    TEXT NOT NULL,
    state      BLOB NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (object_key, version)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE asset_cursors;
DROP TABLE asset_checksums;
DROP TABLE package_plans;
DROP TABLE packages;
DROP TABLE workflow_grants;
DROP TABLE api_keys;
DROP TABLE organizations;
