-- What postgres-rejoin.sh may do beside postgres-role.sql. Run on the primary, as a
-- superuser, and give the password of rewind with \password rewind
grant pg_checkpoint to understudy; -- PostgreSQL 15
create role rewind login;
grant execute on function pg_ls_dir(text, boolean, boolean) to rewind;
grant execute on function pg_stat_file(text, boolean) to rewind;
grant execute on function pg_read_binary_file(text) to rewind;
grant execute on function pg_read_binary_file(text, bigint, bigint, boolean) to rewind;
