-- +goose Up

-- Packages as objects of the store. A row stands for what may be in the store
-- under its key, and is there until that is deleted: for longer than its package,
-- maybe.
CREATE TABLE assemblies (
    id          UUID PRIMARY KEY,
    package_id  UUID NOT NULL,
    object_key  TEXT COLLATE "C" NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'failed', 'expired')),
    upload      TEXT NOT NULL, -- the multipart upload under way; empty for none
    failure     TEXT, -- JSON
    bytes_total BIGINT NOT NULL,
    bytes_done  BIGINT NOT NULL,
    worker      TEXT NOT NULL,
    lease_until BIGINT NOT NULL,
    started_at  BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL -- the object is kept until then
);
CREATE UNIQUE INDEX assemblies_package ON assemblies (package_id) WHERE state <> 'expired';
CREATE INDEX assemblies_lease ON assemblies (lease_until) WHERE state = 'pending';
CREATE INDEX assemblies_expires ON assemblies (expires_at);

-- +goose Down
DROP TABLE assemblies;
