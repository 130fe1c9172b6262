-- What the scripts may do. Run on the primary, as a superuser:
--   psql -f postgres-role.sql
-- and give the password with \password understudy
create role understudy login connection limit 20;
grant pg_monitor, pg_signal_backend to understudy;
grant execute on function pg_promote(boolean, integer) to understudy;
grant execute on function pg_reload_conf() to understudy;
grant alter system on parameter default_transaction_read_only to understudy; -- PostgreSQL 15
