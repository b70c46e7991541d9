-- +goose Up

-- Times are microseconds since 1970 UTC; 0 stands for none.

CREATE TABLE organizations (
    id         TEXT PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    label           TEXT NOT NULL,
    secret_hash     BYTEA NOT NULL,
    created_at      BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    revoked_at      BIGINT NOT NULL
);
CREATE INDEX api_keys_organization ON api_keys (organization_id);

CREATE TABLE workflow_grants (
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    workflow_id     TEXT COLLATE "C" NOT NULL, -- or * for all
    created_at      BIGINT NOT NULL,
    PRIMARY KEY (organization_id, workflow_id)
);

CREATE TABLE packages (
    id           UUID PRIMARY KEY,
    workflow_id  TEXT NOT NULL,
    job_id       TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'failed')),
    entries      BIGINT NOT NULL,
    size         BIGINT NOT NULL,
    digest       BYTEA,
    failure      TEXT, -- JSON
    bytes_total  BIGINT NOT NULL,
    bytes_done   BIGINT NOT NULL,
    run          BIGINT NOT NULL,  -- changes with each new start
    worker       TEXT NOT NULL,    -- who works on it; empty for nobody
    lease_until  BIGINT NOT NULL,  -- a pending package needs no attention before
    started_at   BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    requested_at BIGINT NOT NULL
);
CREATE INDEX packages_job ON packages (workflow_id, job_id);
CREATE INDEX packages_created ON packages (created_at);
CREATE INDEX packages_requested ON packages (requested_at);
CREATE INDEX packages_lease ON packages (lease_until) WHERE state = 'pending';

-- Plans are large, and must not be rewritten whenever a package's state is.
CREATE TABLE package_plans (
    package_id UUID PRIMARY KEY REFERENCES packages (id) ON DELETE CASCADE,
    plan       BYTEA NOT NULL
);
ALTER TABLE package_plans ALTER COLUMN plan SET STORAGE EXTERNAL; -- hashes do not compress

CREATE TABLE asset_checksums (
    object_key TEXT COLLATE "C" NOT NULL,
    version    TEXT COLLATE "C" NOT NULL,
    size       BIGINT NOT NULL,
    crc32      BIGINT NOT NULL,
    sha256     BYTEA,
    PRIMARY KEY (object_key, version)
);

-- How far the reading of large assets has come.
CREATE TABLE asset_cursors (
    object_key TEXT COLLATE "C" NOT NULL,
    version    TEXT COLLATE "C" NOT NULL,
    state      BYTEA NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (object_key, version)
);

-- +goose Down
DROP TABLE asset_cursors;
DROP TABLE asset_checksums;
DROP TABLE package_plans;
DROP TABLE packages;
DROP TABLE workflow_grants;
DROP TABLE api_keys;
DROP TABLE organizations;
