BEGIN TRANSACTION;
CREATE TABLE blocks (
    directory TEXT NOT NULL,
    id TEXT NOT NULL,
    uid INTEGER NOT NULL,
    since REAL NOT NULL,
    PRIMARY KEY (directory, id)
) WITHOUT ROWID;
INSERT INTO "blocks" VALUES('@ROOT@/images','42db7359a16af280f404585ec5021c10666c0fc4066e84ed30b6794f030d8fc1',0,1.79598237901744079586e+09);
CREATE TABLE breakers (
    key TEXT PRIMARY KEY NOT NULL,
    until REAL NOT NULL,
    why TEXT NOT NULL,
    trips INTEGER NOT NULL,
    probed REAL NOT NULL
) WITHOUT ROWID;
INSERT INTO "breakers" VALUES('limit limited anonymous @MACHINE@',1.79598308647349405291e+09,'limited (rate limit)',1,0.0);
INSERT INTO "breakers" VALUES('limit registry anonymous @MACHINE@',1.79598248547349405293e+09,'registry (rate limit)',1,0.0);
CREATE TABLE images (
    key TEXT PRIMARY KEY NOT NULL,
    document TEXT NOT NULL CHECK (json_valid(document)),
    system TEXT AS (json_extract(document, '$.system')),
    itype TEXT AS (json_extract(document, '$.itype')),
    tag TEXT AS (json_extract(document, '$.tag')),
    pulltag TEXT AS (json_extract(document, '$.pulltag')),
    id TEXT AS (json_extract(document, '$.id')),
    status TEXT AS (
        CASE json_extract(document, '$.status')
            WHEN 'SUCCESS' THEN 'READY' -- an old word of the original
            ELSE json_extract(document, '$.status')
        END
    ),
    claim TEXT AS (json_extract(document, '$.claim')),
    attempt INTEGER AS (json_extract(document, '$.attempt')),
    last_heartbeat REAL AS (json_extract(document, '$.last_heartbeat')),
    last_pull REAL AS (json_extract(document, '$.last_pull')),
    expiration REAL AS (json_extract(document, '$.expiration')),
    requested_by INTEGER AS (json_extract(document, '$.requested_by')),
    own_failure INTEGER AS (json_extract(document, '$.own_failure'))
, not_before REAL AS (json_extract(document, '$.not_before')), location TEXT AS (json_extract(document, '$.location')));
INSERT INTO "images" VALUES('6b0c8425648f3ce230454336','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":["lib/ready:1"],"pulltag":"lib/ready:1","status":"READY","status_message":"Transferring metadata","userACL":[],"groupACL":[],"private":false,"last_pull":1795982377.1589835,"kind":"pull","attempt":1,"requested_by":2001,"request_id":"a31bebc5","location":"registry","last_heartbeat":1795982377.1551442,"ENV":["PATH=/bin","NAME=lib/ready"],"ENTRY":["/bin/run"],"CMD":["--help"],"WORKDIR":"/work","origin":{"location":"registry","repository":"lib/ready","source_digest":"sha256:08cd3b5427478c46cf9c6e1b6002575343ad1db03d11bee5ed405ec3466e73fe","private":false},"size":4096,"sha256":"24f7076f4293ee900829011052878f48a8dd40506eb51d11ae9f18df140e301c","modified":1795982377,"options":"ae48017929c7","report":{"entries":3,"size":9,"devices":0,"under_dev":0,"setuid":0,"xattrs":0,"modes":0,"metadata":[],"verification":{"method":"sha256","reason":""}},"expiration":1803758377.1584554,"LABELS":{"org.example.name":"lib/ready"},"id":"08cd3b5427478c46cf9c6e1b6002575343ad1db03d11bee5ed405ec3466e73fe"}');
INSERT INTO "images" VALUES('6b0c84292e3c9b937e30268d','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/removed:1","status":"EXPIRING","status_message":"EXPIRING","userACL":[],"groupACL":[],"private":false,"last_pull":1795982377.4000616,"kind":"expire","attempt":0,"requested_by":2001,"request_id":"7b2ba226","location":"registry","ENV":["PATH=/bin","NAME=lib/removed"],"ENTRY":["/bin/run"],"CMD":["--help"],"WORKDIR":"/work","origin":{"location":"registry","repository":"lib/removed","source_digest":"sha256:395a9b40c342229cb5d4d75f9c423263a1ba95c095a77028bdbc7f15f91b1ab5","private":false},"size":4096,"sha256":"6aaed25a6269d6bcf9b7c0aecfd76d77d2efb12e0bf5d5c4d9e2112f804c27f2","modified":1795982377,"options":"ae48017929c7","report":{"entries":3,"size":11,"devices":0,"under_dev":0,"setuid":0,"xattrs":0,"modes":0,"metadata":[],"verification":{"method":"sha256","reason":""}},"expiration":1803758377.3997927,"LABELS":{"org.example.name":"lib/removed"},"id":"395a9b40c342229cb5d4d75f9c423263a1ba95c095a77028bdbc7f15f91b1ab5","claim":"mycluster/docker/@6b0c84292e3c9b937e30268d","earlier":1}');
INSERT INTO "images" VALUES('6b0c8429730c7d22e0a2bc09','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/gone:1","status":"EXPIRED","status_message":"EXPIRED","userACL":[],"groupACL":[],"private":false,"last_pull":1795982379.091403,"kind":"expire","attempt":2,"requested_by":2001,"request_id":"e960d2cd","location":"registry","ENV":["PATH=/bin","NAME=lib/gone"],"ENTRY":["/bin/run"],"CMD":["--help"],"WORKDIR":"/work","origin":{"location":"registry","repository":"lib/gone","source_digest":"sha256:8a153eca94883a1fcfb91a5fc6f28ab1d956eedc03dcab81da7c9fd9901149cb","private":false},"size":4096,"sha256":"a2ea608ebbf44506678a4382abaf1530baa8919704aca4d4ad17e25f7e90c431","modified":1795982377,"options":"ae48017929c7","report":{"entries":3,"size":8,"devices":0,"under_dev":0,"setuid":0,"xattrs":0,"modes":0,"metadata":[],"verification":{"method":"sha256","reason":""}},"expiration":1803758377.6207495,"LABELS":{"org.example.name":"lib/gone"},"id":"8a153eca94883a1fcfb91a5fc6f28ab1d956eedc03dcab81da7c9fd9901149cb","earlier":1,"last_heartbeat":1795982379.0689766}');
INSERT INTO "images" VALUES('6b0c8429ae30d841ae7df44b','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":["lib/blocked:1"],"pulltag":"lib/blocked:1","status":"EXPIRED","status_message":"EXPIRED","userACL":[],"groupACL":[],"private":false,"last_pull":1795982379.154271,"kind":"expire","attempt":2,"requested_by":2001,"request_id":"021b1ea9","location":"registry","ENV":["PATH=/bin","NAME=lib/blocked"],"ENTRY":["/bin/run"],"CMD":["--help"],"WORKDIR":"/work","origin":{"location":"registry","repository":"lib/blocked","source_digest":"sha256:42db7359a16af280f404585ec5021c10666c0fc4066e84ed30b6794f030d8fc1","private":false},"size":4096,"sha256":"9757c93c80451ce575b0c8f1cbfb00218f3b60603045a83d5a84dbd1ba8b4226","modified":1795982377,"options":"ae48017929c7","report":{"entries":3,"size":11,"devices":0,"under_dev":0,"setuid":0,"xattrs":0,"modes":0,"metadata":[],"verification":{"method":"sha256","reason":""}},"expiration":1803758377.876369,"LABELS":{"org.example.name":"lib/blocked"},"id":"42db7359a16af280f404585ec5021c10666c0fc4066e84ed30b6794f030d8fc1","earlier":1,"last_heartbeat":1795982379.1528614}');
INSERT INTO "images" VALUES('6b0c8429e78915adc0d36732','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":["closed/ready:1"],"pulltag":"closed/ready:1","status":"READY","status_message":"Transferring metadata","userACL":[2001],"groupACL":[],"private":true,"last_pull":1795982378.3404567,"kind":"pull","attempt":1,"requested_by":2001,"request_id":"c36f0f34","location":"registry","last_heartbeat":1795982378.2995143,"ENV":["PATH=/bin","NAME=closed/ready"],"ENTRY":["/bin/run"],"CMD":["--help"],"WORKDIR":"/work","origin":{"location":"registry","repository":"closed/ready","source_digest":"sha256:2a0e19fb14c2f932888edc5d21286c9992ef8cec2f55306a6eda335fbbb761a4","private":true},"size":4096,"sha256":"ec62ec27cdefdd0d589b7a17b08291ccd333651266f74e1e2f69881b232c6044","modified":1795982378,"options":"ae48017929c7","report":{"entries":3,"size":12,"devices":0,"under_dev":0,"setuid":0,"xattrs":0,"modes":0,"metadata":[],"verification":{"method":"sha256","reason":""}},"expiration":1803758378.337443,"LABELS":{"org.example.name":"closed/ready"},"id":"2a0e19fb14c2f932888edc5d21286c9992ef8cec2f55306a6eda335fbbb761a4"}');
INSERT INTO "images" VALUES('6b0c842a62f082e0f17567d1','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":["closed/shared:1"],"pulltag":"closed/shared:1","status":"READY","status_message":"Transferring metadata","userACL":[2001],"groupACL":[],"private":true,"last_pull":1795982378.6987095,"kind":"pull","attempt":1,"requested_by":2001,"request_id":"233041b6","location":"registry","last_heartbeat":1795982378.6762016,"ENV":["PATH=/bin","NAME=closed/shared"],"ENTRY":["/bin/run"],"CMD":["--help"],"WORKDIR":"/work","origin":{"location":"registry","repository":"closed/shared","source_digest":"sha256:37cbd1bd7eb7bba74bedd1bc813d7444d053c8b21179c522a4a47a04b3506fc5","private":true},"size":4096,"sha256":"01138f1ca111b8cedc9be6e770305e410918ab17433de190917c73d8253e9913","modified":1795982378,"options":"ae48017929c7","report":{"entries":3,"size":13,"devices":0,"under_dev":0,"setuid":0,"xattrs":0,"modes":0,"metadata":[],"verification":{"method":"sha256","reason":""}},"expiration":1803758378.6962488,"LABELS":{"org.example.name":"closed/shared"},"id":"37cbd1bd7eb7bba74bedd1bc813d7444d053c8b21179c522a4a47a04b3506fc5"}');
INSERT INTO "images" VALUES('6b0c842ab9b1bfd97f253937','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"missing/app:1","status":"FAILURE","status_message":"The registry ''registry'' has no image missing/app:1 (NAME_UNKNOWN).","userACL":[],"groupACL":[],"private":null,"last_pull":1795982378.735604,"kind":"pull","attempt":1,"requested_by":2001,"request_id":"f41a1b3f","location":"registry","last_heartbeat":1795982378.7299805,"stage":"PULLING","cause":"The registry ''registry'' has no image missing/app:1 (NAME_UNKNOWN).","remedy":"Check the name and the tag of the image.","retryable":false,"own_failure":true}');
INSERT INTO "images" VALUES('6b0c842ace53ac70a049870e','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"closed/ready:2","status":"FAILURE","status_message":"The registry ''registry'' has no image closed/ready:2 (MANIFEST_UNKNOWN).","userACL":[],"groupACL":[],"private":null,"last_pull":1795982378.924662,"kind":"pull","attempt":1,"requested_by":2001,"request_id":"58fa22b5","location":"registry","with_login":true,"last_heartbeat":1795982378.8325174,"stage":"PULLING","cause":"The registry ''registry'' has no image closed/ready:2 (MANIFEST_UNKNOWN).","remedy":"Check the name and the tag of the image.","retryable":false,"own_failure":true}');
INSERT INTO "images" VALUES('6b0c842f895b32ff12e95355','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/converting:1","status":"CONVERSION","status_message":"Converting image","userACL":[],"groupACL":[],"private":null,"last_pull":1795982383.5365534,"claim":"mycluster/docker/lib/converting:1","kind":"pull","attempt":1,"requested_by":2001,"request_id":"a5735679","requester":"alice","location":"registry","runner":"@MACHINE@:25787","last_heartbeat":1795982386.2542825}');
INSERT INTO "images" VALUES('6b0c84324525df0840caf286','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/waiting:1","status":"PENDING","status_message":"","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.2701104,"claim":"mycluster/docker/lib/waiting:1","kind":"pull","attempt":0,"requested_by":2001,"request_id":"db35c4a4","requester":"alice","location":"registry"}');
INSERT INTO "images" VALUES('6b0c843245c6781dff830976','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/pulling:1","status":"PULLING","status_message":"PULLING","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.2725525,"claim":"mycluster/docker/lib/pulling:1","kind":"pull","attempt":1,"requested_by":2001,"request_id":"d7f320dd","requester":"alice","location":"registry","runner":"node1:7","last_heartbeat":1795982386.4734943,"stage":"PULLING","done":100,"total":200}');
INSERT INTO "images" VALUES('6b0c8432466580a3c644f3e0','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/examining:1","status":"EXAMINATION","status_message":"Examining image","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.2749834,"claim":"mycluster/docker/lib/examining:1","kind":"pull","attempt":1,"requested_by":2001,"request_id":"ab083859","requester":"alice","location":"registry","runner":"node1:7","last_heartbeat":1795982386.4734943}');
INSERT INTO "images" VALUES('6b0c843246f920065ad53b7f','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/delivering:1","status":"TRANSFER","status_message":"Transferring image","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.277249,"claim":"mycluster/docker/lib/delivering:1","kind":"pull","attempt":1,"requested_by":2001,"request_id":"10c59933","requester":"alice","location":"registry","runner":"node1:7","last_heartbeat":1795982386.4734943}');
INSERT INTO "images" VALUES('6b0c843248d61a935b95f44d','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/again:1","status":"PENDING","status_message":"The worker was killed; another one goes on.","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.2845237,"claim":"mycluster/docker/lib/again:1","kind":"pull","attempt":1,"requested_by":2001,"request_id":"581b1968","requester":"alice","location":"registry","deaths":1}');
INSERT INTO "images" VALUES('6b0c84324a6bb1c6d7c6d221','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/postponed:1","status":"PENDING","status_message":"Waits until 20:01:25 for registry (rate limit)","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.2907093,"claim":"mycluster/docker/lib/postponed:1","kind":"pull","attempt":1,"requested_by":2001,"request_id":"478f84fb","requester":"alice","location":"registry","not_before":1795982485.473494,"waits_for":"registry (rate limit)","waited":98.99999976158142}');
INSERT INTO "images" VALUES('6b0c84324b3f4f6402be131e','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/later:1","status":"PENDING","status_message":"Waits until 21:01 for registry (rate limit)","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.2939444,"claim":"mycluster/docker/lib/later:1","kind":"pull","attempt":1,"requested_by":2001,"request_id":"4b2bdb8d","requester":"alice","location":"registry","not_before":1795986086.473494,"waits_for":"registry (rate limit)","waited":3699.9999997615814}');
INSERT INTO "images" VALUES('6b0c84324c6e88fea1049ce4','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"lib/system:1","status":"PENDING","status_message":"Waits until 20:01:25 for the system mycluster (its host does not answer)","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.298559,"claim":"mycluster/docker/lib/system:1","kind":"pull","attempt":1,"requested_by":2001,"request_id":"e418f3a4","requester":"alice","location":"registry","not_before":1795982485.473494,"waits_for":"the system mycluster (its host does not answer)","waited_for_system":98.99999976158142}');
INSERT INTO "images" VALUES('6b0c843250f9d761ca353945','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"closed/waiting:1","status":"PENDING","status_message":"","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.316306,"claim":"mycluster/docker/closed/waiting:1","kind":"pull","attempt":0,"requested_by":2001,"request_id":"66c48098","requester":"alice","location":"registry","sealed":"aRojjYJM11/jXMyhybETiMROXPBPttmaOmadCo/pMyOW+ONCz7vy9KpkLA4=","with_login":true}');
INSERT INTO "images" VALUES('6b0c8432566255aeee9151c9','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"closed/ready:1","status":"PENDING","status_message":"","userACL":[],"groupACL":[],"private":null,"last_pull":1795982386.3374465,"claim":"mycluster/docker/closed/ready:1","kind":"pull","attempt":0,"requested_by":2002,"request_id":"bde38a1c","requester":"bob","location":"registry","sealed":"V3HnCIGYd//J593XitE9QF0xfPvvCFBpd47H+AjehLXZ4KDOJ5BB","with_login":true}');
INSERT INTO "images" VALUES('6b0c84325e429e05b86a1d04','{"format":"squashfs","arch":"amd64","os":"linux","remotetype":"dockerv2","ostcount":"0","replication":"1","system":"mycluster","itype":"docker","tag":[],"pulltag":"closed/shared:1","status":"PENDING","status_message":"","userACL":[2001,2003],"groupACL":[2300],"private":null,"last_pull":1795982386.3681989,"claim":"mycluster/docker/closed/shared:1","kind":"acl","attempt":0,"requested_by":2001,"request_id":"a522c076","requester":"alice","location":"registry","sealed":"vCNS/5M7o2n+qFza4FGkenQKUDu0e67YvNX7euKMMNBdqqcXlll8BKs3em4=","with_login":true}');
CREATE TABLE leases (
    directory TEXT NOT NULL,
    id TEXT NOT NULL,
    holder TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (directory, id)
) WITHOUT ROWID;
INSERT INTO "leases" VALUES('@ROOT@/images','e3b9eaa26689e99119e578ed621d4b416931b7dab3755b3c209d4eaaeec1421e','6b0c843246f920065ad53b7f/1',1.79598250647349429133e+09);
CREATE TABLE lookups (
    number INTEGER PRIMARY KEY,
    system TEXT NOT NULL,
    document TEXT NOT NULL
);
INSERT INTO "lookups" VALUES(1,'mycluster','{"user": "alice", "uid": 2001, "system": "mycluster", "type": "docker", "tag": "lib/blocked:1", "id": "42db7359a16af280f404585ec5021c10666c0fc4066e84ed30b6794f030d8fc1", "time": 1795982379.0046377}');
INSERT INTO "lookups" VALUES(2,'mycluster','{"user": "alice", "uid": 2001, "system": "mycluster", "type": "docker", "tag": "lib/ready:1", "id": "08cd3b5427478c46cf9c6e1b6002575343ad1db03d11bee5ed405ec3466e73fe", "time": 1795982379.05872}');
CREATE TABLE tags (
    system TEXT NOT NULL,
    itype TEXT NOT NULL,
    tag TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (system, itype, tag, key)
) WITHOUT ROWID;
INSERT INTO "tags" VALUES('mycluster','docker','lib/ready:1','6b0c8425648f3ce230454336');
INSERT INTO "tags" VALUES('mycluster','docker','closed/ready:1','6b0c8429e78915adc0d36732');
INSERT INTO "tags" VALUES('mycluster','docker','closed/shared:1','6b0c842a62f082e0f17567d1');
CREATE TABLE turns (
    uid INTEGER PRIMARY KEY,
    served REAL NOT NULL
);
INSERT INTO "turns" VALUES(-2,1.79598237912633705137e+09);
INSERT INTO "turns" VALUES(2001,1.79598238647349429126e+09);
CREATE UNIQUE INDEX images_in_flight ON images (claim) WHERE claim IS NOT NULL;
CREATE INDEX images_ready ON images (system, id) WHERE status = 'READY';
CREATE INDEX images_expiration ON images (expiration)
    WHERE status = 'READY' AND expiration IS NOT NULL;
CREATE INDEX images_ended ON images (system, itype, pulltag)
    WHERE claim IS NULL AND status <> 'READY';
CREATE INDEX tags_of_record ON tags (key);
CREATE TRIGGER tags_inserted AFTER INSERT ON images WHEN new.status = 'READY' BEGIN
    INSERT OR IGNORE INTO tags
        SELECT new.system, new.itype, value, new.key
        FROM json_each(new.document, '$.tag') WHERE value IS NOT NULL;
END;
CREATE TRIGGER tags_updated AFTER UPDATE OF document ON images
WHEN (old.status = 'READY' OR new.status = 'READY')
    AND (old.status IS NOT new.status OR old.tag IS NOT new.tag
        OR old.system IS NOT new.system OR old.itype IS NOT new.itype)
BEGIN
    DELETE FROM tags WHERE key = old.key;
    INSERT OR IGNORE INTO tags
        SELECT new.system, new.itype, value, new.key
        FROM json_each(new.document, '$.tag') WHERE value IS NOT NULL AND new.status = 'READY';
END;
CREATE TRIGGER tags_deleted AFTER DELETE ON images WHEN old.status = 'READY' BEGIN
    DELETE FROM tags WHERE key = old.key;
END;
CREATE INDEX lookups_of_system ON lookups (system, number);
CREATE INDEX images_expiring ON images (system, id) WHERE status = 'EXPIRING';
CREATE INDEX images_listed ON images (system, key) WHERE status = 'READY';
CREATE INDEX images_turns
    ON images (status, requested_by, not_before, attempt, system, location, key)
    WHERE claim IS NOT NULL;
COMMIT;
PRAGMA user_version = 4;
