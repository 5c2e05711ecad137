-- `stocklock verify` looks at the transactions of all sessions.
GRANT PROCESS ON *.* TO 'stocklock'@'%';
