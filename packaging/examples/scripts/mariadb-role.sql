-- What the scripts may do. Run on the primary, with the password of mysql.cnf.
create user understudy@'%' identified by 'PASSWORD';
grant read_only admin, replica monitor, replication replica admin, reload on *.* to understudy@'%';
