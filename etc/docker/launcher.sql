-- a database of the launcher's own, beside the Hub's: both keep their schema's version under the same name
CREATE DATABASE launcher;
